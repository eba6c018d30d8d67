"""The whole loop in ten lines: do a task, correct a step, go on from there, train, and serve what is better."""

from __future__ import annotations

from agent import Agent
from tools import tool


@tool(effect="read")
def find_book(title: str) -> str:
    """Look a book up in the catalogue."""
    return f"{title} is in." if title == "Walden" else f"There is no {title}."


def main(agent: Agent) -> None:
    run = agent.run("Is Walden in?", context={"reader": "Ada"})
    print(run.answer, run.citations)
    fixed = run.correct(step=0, tool="find_book", arguments={"title": "Walden"}).resume()
    fixed.rate("up")
    print(fixed.answer)


def learn(agent: Agent) -> None:
    candidate = agent.tune()
    print(candidate.promote())  # on the held-out tasks that gate.suite of ratchet.toml names


if __name__ == "__main__":
    with Agent(tools=[find_book]) as librarian:
        main(librarian)
        learn(librarian)
