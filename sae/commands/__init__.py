"""The commands of `sae`, one file each: what `mechvis sae ...` offers. Heavy things are imported inside them.

`harvest` is the store's own command (`mechvis harvest`), for those who look for it here.
"""

from mechvis.store.command import harvest
from sae.commands.convert import convert
from sae.commands.dashboard import dashboard
from sae.commands.evaluate import evaluate
from sae.commands.train import train

commands = {"harvest": harvest, "train": train, "eval": evaluate, "dashboard": dashboard, "convert": convert}
"""What `mechvis sae` offers."""
