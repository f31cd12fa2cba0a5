"""`python -m dvla_lightning` is `dvla`."""

from dvla_lightning.cli import main

if __name__ == "__main__":  # not in the workers, which import this file
    main()
