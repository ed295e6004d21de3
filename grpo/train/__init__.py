"""The loop of one run: collect, learn, update, evaluate, keep."""
