"""Train and evaluate a model: ``python run.py --help``. Everything is in :mod:`medvlm_r1.run`."""

from medvlm_r1.run import main

if __name__ == "__main__":
    main()
