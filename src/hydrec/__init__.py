"""hydrec: experiments in sequential recommendation and click-through-rate prediction that can be believed."""

__version__ = "0.1.0"
