"""Online hyperparameter optimisation by real-time recurrent learning (Im, Savin, Cho 2021).

Does not belong here: what another paper of the book measures.
"""
