"""What is measured, one file per suite; each offers ``workloads()``."""
