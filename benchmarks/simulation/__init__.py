"""Servers, the balancer before them and their clients, simulated: what many machines would do that are not here.

    load ──► Balancer ──► Node: front ── the real Scheduler ──► workers ──► front ──► Balancer ──► load
                             └─ their seconds pass on a Machine, whose cores processes share ─┘

Only time is simulated: batches are formed by `embellama.scheduler.Scheduler`, as in the server. What things cost
(`Costs`) is measured (`benchmarks.scale --measure`). One seed, one result.
"""
