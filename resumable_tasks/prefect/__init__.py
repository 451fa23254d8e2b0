"""The only part of the library that knows Prefect. Loaded only in flow runs.

::

    detect      are we in a flow run? (asked without loading Prefect)
    flow_run    the surrounding flow run: its logger, identity, signals, runner
    threads     batches as task runs in this process
    remote      batches as task runs in other processes: Dask, Ray, process pools
    leaving     leaving the process while a service works, and coming back
    waiting     the batches without a task run; groups: those with one; pace: how many
    wire        how the work is sent to workers; workorder: the input of one task run
    worker      the worker's side of a task run
    telemetry   artifacts and events, best effort; markdown: escaping text for them
    drawing     a job in the picture that flow.visualize() makes
    states      the state that a flow returns
    schedule    the date that a scheduled flow run is about
"""
