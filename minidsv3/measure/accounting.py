"""How many parameters a model has, and how many of them work on one token."""


def count_parameters(model):
    """Parameters of the main model: (total, active for one token); shared matrices count once.

    A token uses K of E routed experts in each sparse block and everything else. Router biases are
    no parameters, and MTP modules are left out, since inference can drop them.
    """
    config = model.config
    main = [p for name, p in model.named_parameters() if not name.startswith("mtp.")]
    total = sum(parameter.numel() for parameter in main)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    idle = config.num_moe_layers * (config.n_routed_experts - config.num_experts_per_tok)
    return total, total - idle * expert
