"""``python -m leptonai.cli`` is the ``lepton`` command."""

from leptonai.cli import main

if __name__ == "__main__":
    main()
