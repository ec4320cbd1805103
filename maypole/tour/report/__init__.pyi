from .choice_plots import documents_by_surprise, token_share
from .model import Example, Measure, Plot, Report, Stage, Table
from .page import render, write
from .plots import Changes, accuracy_by_skill, change_per_measure, held_out_loss, scatter

__all__ = [
    "Changes",
    "Example",
    "Measure",
    "Plot",
    "Report",
    "Stage",
    "Table",
    "accuracy_by_skill",
    "change_per_measure",
    "documents_by_surprise",
    "held_out_loss",
    "render",
    "scatter",
    "token_share",
    "write",
]
