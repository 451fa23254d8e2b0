"""Prefect: the only part of the library that names it. Loaded in flow runs only.

::

    detect      are we in a flow run? (asked without loading Prefect)
    flow_run    what a run takes from the flow run around it: logger, identity, signals, runner
    threads     batches as task runs in this process
    remote      batches as task runs in other processes: Dask, Ray, process pools
    leaving     leaving the process while a service works, and coming back
    waiting     the batches that no task run has; groups, those that one has; pace, how many
    wire        how the work crosses to workers; workorder, what one task run is given
    worker      what a worker does with its work order
    telemetry   artifacts and events, best effort; markdown, how text stands in them
    drawing     a job in the picture that flow.visualize() makes
    states      the state that a flow returns
    schedule    the date that a scheduled flow run is about
"""
