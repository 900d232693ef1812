"""Long tokens, the neurons that write them, registers for them at test time, and massive activations (methods.md 12).

* `diagnose_registers`: all of it in one call.
* `token_norms`: lengths per layer with a suggested threshold; `.outliers()` says which patches are long.
* `outlier_content`: who attends to them, and what can be read from them. `register_neurons`: who writes them.
* `with_registers`: the same model with registers, untouched; `register_effect`: before and after, with controls.
* `massive_activations`, `massive_test`: huge fixed dimensions, and whether they are a bias.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "diagnose_registers": "probes.registers.diagnosis",
        "RegisterDiagnosis": "probes.registers.diagnosis",
        "token_norms": "probes.registers.norms",
        "TokenNorms": "probes.registers.norms",
        "suggest_threshold": "probes.registers.norms",
        "Threshold": "probes.registers.norms",
        "register_neurons": "probes.registers.neurons",
        "RegisterNeurons": "probes.registers.neurons",
        "with_registers": "probes.registers.added_tokens",
        "Registered": "probes.registers.added_tokens",
        "register_effect": "probes.registers.effect",
        "RegisterEffect": "probes.registers.effect",
        "outlier_content": "probes.registers.content",
        "OutlierContent": "probes.registers.content",
        "what_tokens_hold": "probes.registers.content",
        "massive_activations": "probes.registers.massive",
        "MassiveActivations": "probes.registers.massive",
        "massive_test": "probes.registers.mean_or_zero",
        "MassiveTest": "probes.registers.mean_or_zero",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.registers.added_tokens import Registered, with_registers
    from probes.registers.content import OutlierContent, outlier_content, what_tokens_hold
    from probes.registers.diagnosis import RegisterDiagnosis, diagnose_registers
    from probes.registers.effect import RegisterEffect, register_effect
    from probes.registers.massive import MassiveActivations, massive_activations
    from probes.registers.mean_or_zero import MassiveTest, massive_test
    from probes.registers.neurons import RegisterNeurons, register_neurons
    from probes.registers.norms import Threshold, TokenNorms, suggest_threshold, token_norms
