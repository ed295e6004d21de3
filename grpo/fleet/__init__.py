"""The driver's handles on engines, learner and the weights between them."""
