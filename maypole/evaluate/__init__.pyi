from . import judges as judges
from .fact_models import ModelDecomposer as ModelDecomposer
from .fact_models import ModelVerifier as ModelVerifier
from .fact_report import Atom as Atom
from .fact_report import FactReport as FactReport
from .fact_report import FactScore as FactScore
from .fact_report import factscore as factscore
from .fact_sources import Documents as Documents
from .fact_sources import KnowledgeGraph as KnowledgeGraph
from .factuality import AtomicChecker as AtomicChecker
from .factuality import FactReward as FactReward
from .kl import KL as KL
from .kl import kl as kl
from .metrics import METRICS as METRICS
from .metrics import exact_match as exact_match
from .metrics import f1 as f1
from .metrics import normalize as normalize
from .metrics import rouge_l as rouge_l
from .pair_accuracy import Accuracy as Accuracy
from .pair_accuracy import pair_accuracy as pair_accuracy
from .perplexity import Perplexity as Perplexity
from .perplexity import document_nll as document_nll
from .perplexity import perplexity as perplexity
from .tasks import Score as Score
from .tasks import TaskScores as TaskScores
from .tasks import task_scores as task_scores
from .win_rate import WinRate as WinRate
from .win_rate import win_rate as win_rate
from .windows import Window as Window
from .windows import windows as windows

__all__ = [
    "KL",
    "METRICS",
    "Accuracy",
    "Atom",
    "AtomicChecker",
    "Documents",
    "FactReport",
    "FactReward",
    "FactScore",
    "KnowledgeGraph",
    "ModelDecomposer",
    "ModelVerifier",
    "Perplexity",
    "Score",
    "TaskScores",
    "WinRate",
    "Window",
    "document_nll",
    "exact_match",
    "f1",
    "factscore",
    "judges",
    "kl",
    "normalize",
    "pair_accuracy",
    "perplexity",
    "rouge_l",
    "task_scores",
    "win_rate",
    "windows",
]
