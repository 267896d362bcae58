"""Jobs that are trained on another machine: the courier, a child of the supervisor in the trainer's place.

It carries a job's folder there, watches, and brings home what the next job needs. docs/elsewhere.md tells it whole.
"""
