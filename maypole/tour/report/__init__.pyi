from .align_plots import won_by_round, won_for_distance
from .choice_plots import documents_by_surprise, token_share
from .model import Example, Measure, Plot, Report, Stage, Table
from .page import render, write
from .plots import Changes, accuracy_by_skill, change_per_measure, held_out_loss, scatter
from .program_plots import program_picture, seconds_each_way

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
    "program_picture",
    "render",
    "scatter",
    "seconds_each_way",
    "token_share",
    "won_by_round",
    "won_for_distance",
    "write",
]
