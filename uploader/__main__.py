"""`python -m uploader` and `python -m vodup` are the command `vodup`."""

from uploader.cli import main

if __name__ == "__main__":
    main()
