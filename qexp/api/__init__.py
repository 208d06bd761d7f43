"""What `import qexp` offers: the command line's work, with objects of the program in place of nodes of the config.

The config is composed from conf/ as for the command line, and the same jobs run with it. `nodes` says what an argument
becomes in the config, `options` what a keyword does, and `running` runs the jobs.
"""
