"""The learner: DeepSpeed ZeRO-3 ranks, the packed policy they train, small models to begin with."""
