"""How the model is deployed (report, section 3.4).

    handover, serving, engines         prefill and decode as two live engines
    step_cost, step_picture            what one step of the full model would cost on many GPUs
    requests, units, pools             many requests on their way through such units, simulated
    disaggregate                       deployments compared with each other and with a real day
"""
