"""The command line: arguments, the commands around runs, feedback, documents and the project, and their output.

The commands of the tuner are in `tuner.commands`; recipes are in neither.
"""
