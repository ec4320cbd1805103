"""maypole: make open-weight language models better, cheaper and better understood.

The pole (engine, training loop, data, model access) stands in the middle; each method is a ribbon woven round it.
Importing this package loads no torch: everything below is fetched when it is used.
"""

import logging

__version__ = "0.1.0"

# Where bitsandbytes is installed peft imports it, and it would tell every command of a kernel that is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
