"""Results to look at: a table on the terminal, a page, the README's section."""
