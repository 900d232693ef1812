"""What happens to a pair (beta, gamma) at each kind of operation: the rules of contextual decomposition.

Every activation `t` is a sum `beta + gamma`: `beta` stems from a source, `gamma` from everything else. A linear map
leaves no choice but for its bias; a norm, a softmax and an activation do (methods2.md 15.1). The choices:

=========  ==========  ==============================================================================================
rule       value       beta after the operation
=========  ==========  ==============================================================================================
`bias`     `rest`      `beta W`; the bias is of no source, gamma takes it
           `share`     `beta W + b |beta W| / (|beta W| + |gamma W|)`, entry by entry; 0/0 is 0; a norm's bias is
                       shared as `|beta| : |gamma|` of its input
`ln`       `rest`      `LN(t) - LN(gamma)`
           `total`     gain times `(beta - mean(beta)) / sd(t)`: the statistics of the total are held
`pattern`  `total`     `A beta_v`, where `A` is the model's own pattern
           `source`    `softmax(beta_q beta_k^T) beta_v`: a pattern made by the source alone
           `rest`      `A v - A_gamma gamma_v`, where `A_gamma = softmax(gamma_q gamma_k^T)`
`act`      `rest`      `s(t) - s(gamma)`
           `shapley`   `(s(t) - s(gamma) + s(beta) - s(0)) / 2`
`cosine`   `frozen`    zero-shot heads: `beta . text / |t|`, the length of the total is held
           `rest`      `head(t) - head(gamma)`
`cancel`   `False`     nothing
           `maps`      where beta and gamma have opposite signs the smaller becomes 0 and the larger their sum: after
                       every linear map, mix of values and addition
           `mlp`       the same after the two maps of the MLP and on a block's output only
=========  ==========  ==============================================================================================

With every rule at `rest` gamma is the run in which the source is ablated, so beta is the effect of that ablation,
exactly. That is what pins the implementation.

Source: CD-T (Hsu et al.), rules read in the released code (**C**); `rest` for bias, norms and patterns, `shapley` and
everything about gates, rotations, pooling and zero-shot heads are ours (**X**).
"""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from mechvis.errors import BadData, unknown

Bias = Literal["rest", "share"]
Norm = Literal["rest", "total"]
PatternRule = Literal["total", "source", "rest"]
Activation = Literal["rest", "shapley"]
Cosine = Literal["frozen", "rest"]
Cancel = Literal[False, "maps", "mlp"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The choices; see the table above. The defaults are those of methods2.md 15.2 (**X**).

    Raises:
        UnknownName: a value that a rule does not have.

    Example:
        >>> Rules(pattern="rest").pattern
        'rest'
    """

    bias: Bias = "rest"
    """Who takes the bias of a linear map or norm."""
    ln: Norm = "rest"
    """LayerNorm and RMSNorm."""
    pattern: PatternRule = "total"
    """Attention patterns."""
    act: Activation = "rest"
    """Activations; in a gated MLP the activated gate times the linear half."""
    cosine: Cosine = "frozen"
    """The cosine of a zero-shot head."""
    cancel: Cancel = False
    """Where opposite signs are cancelled. It broke the ranking on signed, pre-norm activations (methods2.md 15.2): off,
    and only there for comparison with the released code, which has both places."""

    def __post_init__(self):
        for field in fields(self):
            value, valid = getattr(self, field.name), _VALID[field.name]
            if not any(value is v if isinstance(v, bool) else value == v for v in valid):
                raise unknown(f"rule for {field.name}", value, map(str, valid))


_VALID = {
    "bias": get_args(Bias),
    "ln": get_args(Norm),
    "pattern": get_args(PatternRule),
    "act": get_args(Activation),
    "cosine": get_args(Cosine),
    "cancel": get_args(Cancel),
}

PRESETS: dict[str, Rules] = {
    "default": Rules(),
    "published": Rules(bias="share", ln="total"),
    "all_rest": Rules(pattern="rest", cosine="rest"),
}
"""`default`; `published` (one of the two patterns of the released code, without its cancellation; the other forms by
`dataclasses.replace`); `all_rest`, which equals ablating the source."""


def rules_of(rules: "str | Rules") -> Rules:
    """The rules of a preset's name, or the rules themselves.

    Raises:
        UnknownName: no such preset.
        BadData: neither a name nor rules.

    Example:
        >>> rules_of("published").bias
        'share'
    """
    if isinstance(rules, Rules):
        return rules
    if not isinstance(rules, str):
        raise BadData(f"rules are a name ({', '.join(PRESETS)}) or Rules(...), got {type(rules).__name__}.")
    if rules not in PRESETS:
        raise unknown("preset of rules", rules, PRESETS)
    return PRESETS[rules]
