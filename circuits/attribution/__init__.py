"""First-order estimates of what every component, input and edge contributes, from gradients; and how far they are
off.
"""
