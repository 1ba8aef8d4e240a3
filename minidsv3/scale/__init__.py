"""How the model is spread over many processes (report, section 3.2).

    expert_parallel  experts on several processes; tokens travel to them and back
    mesh             the plan of a run: how many processes share what; the full-size plan

All of it attaches to a finished model from outside, before its optimisers are made: `model/` knows
nothing of it.
"""
