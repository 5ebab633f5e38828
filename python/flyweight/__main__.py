"""``python -m flyweight``."""

from flyweight.cli.main import main

if __name__ == "__main__":
    main()
