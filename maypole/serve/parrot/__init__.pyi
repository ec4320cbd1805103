from .backends import Runtime as Runtime
from .client import Session as Session
from .client import Variable as Variable
from .functions import Input as Input
from .functions import Output as Output
from .functions import SemanticFunction as SemanticFunction
from .functions import function as function
from .graph import VariableFailed as VariableFailed
from .placement import Capacity as Capacity
from .program import ProgramResult as ProgramResult
from .program import load_program as load_program
from .program import run_program as run_program
from .service import StillWaiting as StillWaiting
from .sessions import SessionLimits as SessionLimits

__all__ = [
    "Capacity",
    "Input",
    "Output",
    "ProgramResult",
    "Runtime",
    "SemanticFunction",
    "Session",
    "SessionLimits",
    "StillWaiting",
    "Variable",
    "VariableFailed",
    "function",
    "load_program",
    "run_program",
]
