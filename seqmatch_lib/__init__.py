"""SeqMatch: sequential subset matching for dataset distillation, on top of base methods such as MTT."""

__version__ = "0.1.0"
