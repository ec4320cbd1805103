"""Floor 4: one file per claim, named by system id: the effect of the paper against its honest baseline. Can fail."""
