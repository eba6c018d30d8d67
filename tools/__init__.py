"""What an agent can do: langchain-core tools. Imports nothing of ours."""
