"""Room: know how good a model is: perplexity, tasks, win rates, judges. Imports no other room."""
