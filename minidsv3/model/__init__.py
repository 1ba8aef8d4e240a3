"""The network: what DeepSeek-V3 *is* (report, section 2). Read in this order:
layers, rope, cache, mla, experts, moe, block, mtp, objective, transformer.

Dimension letters of the whole package:

    B  sequences in the batch          E  routed experts
    T  query positions                 K  experts chosen per token
    S  key positions, cached + new     G  expert groups
    C  width of the model              F  width of one expert
    H  attention heads                 N  tokens in a flat list, B*T
    D, Dn, Dr, Dv  head width: whole, without position, rotary, value
    Rq, Rkv  latent ranks              V  vocabulary          P  processes in a group

C is the report's d; the latent ranks are its d_c' and d_c.
"""
