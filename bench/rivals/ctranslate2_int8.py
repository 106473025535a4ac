"""CTranslate2 with weights in int8: for information, its answers are others."""

from bench import problems
from bench.rivals import Calls, ctranslate2

NAME = "ctranslate2_int8"

version, prepare = ctranslate2.version, ctranslate2.prepare


def calls(problem: problems.Problem) -> Calls:
    return ctranslate2.calls(problem, "int8")
