from .pruning import prune as prune
from .reference import train_reference as train_reference
from .scores import Reading as Reading
from .scores import Scores as Scores
from .scoring import score as score
from .selection import Selection as Selection
from .selection import select as select
from .split import Read as Read
from .split import remembered as remembered

__all__ = ["Read", "Reading", "Scores", "Selection", "prune", "remembered", "score", "select", "train_reference"]
