"""A dataset, a model and a method of your own. The files in conf/ make them known to qexp."""
