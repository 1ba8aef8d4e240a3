"""How the model is spread over many processes (report, section 3.2).

    expert_parallel  experts on several processes; tokens travel to them and back
    parallel         FSDP and expert parallelism for a model
    mesh             the full-size plan: what each GPU would hold
    muon             Muon for matrices that are divided
    team, checkpoint the processes of one run, and the run folder that they share
    programme        what each rank of a pipeline does, action by action
    timeline, gantt  the same, simulated and drawn
    stage, pipeline  the same, executed on processes; `engine` has torch's schedules
    split_backward   a backward pass in two halves, for the input and for the weights

All of it attaches to a finished model from outside, before its optimisers are made: `model/` knows
nothing of it.
"""
