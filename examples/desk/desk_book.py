"""The shop's orders of one half, and picks among them: a customer, an order in some situation.

Picks deal from shuffled decks, so nobody is asked twice before all were. Reads the pristine shop alone.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Item:
    sku: str
    name: str
    size: str | None


@dataclass(frozen=True)
class Order:
    """An order with its situation: packing, shipped, late, open, closed or returned."""

    id: str
    customer: str
    kind: str
    status: str
    items: tuple[Item, ...]
    total: int
    ordered: date
    due: date
    last_day: date | None
    """Last day to return it, once it is delivered."""


class Book:
    """The orders of one split in the database at `path`; `database` is the module `desk_database`."""

    def __init__(self, split: str, rng: random.Random, path: Path, database: Any) -> None:
        self._split, self._rng, self._path, self._database = split, rng, path, database
        self._orders = self._load()
        self._decks: dict[str, list[Any]] = {}

    def customer(self, but: str = "") -> str:
        mine = sorted({order.customer for order in self._orders})
        found = str(self.deal("customers", mine))
        return found if found != but else self.customer(but)

    def order(
        self,
        kind: str,
        slots: dict[str, str],
        *,
        sized: bool = False,
        newest: bool = False,
        listed: bool = False,
    ) -> Order:
        """An order in that situation; a `listed` one is in `list_orders` and holds a thing no other does."""
        orders = [order for order in self._orders if order.kind == kind]
        if sized:
            orders = [order for order in orders if any(item.size for item in order.items)]
        if newest:
            orders = [order for order in orders if self._place(order) == 0]
        if listed:
            orders = [order for order in orders if self._place(order) < 3 and self.own_names(order)]
        order: Order = self.deal(f"{kind} {sized} {newest} {listed}", orders)
        slots["order"] = order.id
        return order

    def _place(self, order: Order) -> int:
        """How many of the customer's orders are as new or newer."""
        mine = [other for other in self._orders if other.customer == order.customer and other != order]
        return sum(other.ordered >= order.ordered for other in mine)

    def own_names(self, order: Order) -> list[str]:
        """Names of its items that are in no other order of the customer."""
        mine = [other for other in self._orders if other.customer == order.customer and other != order]
        others = {item.name for other in mine for item in other.items}
        return [item.name for item in order.items if item.name not in others]

    def deal(self, deck: str, cards: list[Any]) -> Any:
        """One of the cards; none comes twice before all came once."""
        if not self._decks.get(deck):
            self._decks[deck] = self._rng.sample(cards, len(cards))
        return self._decks[deck].pop()

    def _load(self) -> list[Order]:
        query = (
            "select o.id, o.customer_id, o.status, o.ordered_on, o.due_on, o.delivered_on, r.id "
            "from orders o left join returns r on r.order_id = o.id order by o.id"
        )
        items: dict[str, list[Any]] = {}
        for row in self.query("select order_id, sku, name, size, price from order_items join products using (sku)"):
            items.setdefault(row[0], []).append(row)
        orders = []
        for id, customer, status, ordered_on, due_on, delivered_on, returned in self.query(query):
            if self._database.split_of(customer) == self._split:
                due, last_day = date.fromisoformat(due_on), None
                if delivered_on:
                    last_day = date.fromisoformat(delivered_on) + timedelta(days=self._database.RETURN_DAYS)
                kind = status if status != "shipped" or due >= self._database.TODAY else "late"
                if last_day:
                    kind = "returned" if returned else "open" if last_day >= self._database.TODAY else "closed"
                goods = tuple(Item(row[1], row[2], row[3]) for row in items[id])
                total = sum(row[4] for row in items[id])
                orders.append(
                    Order(
                        id,
                        customer,
                        kind,
                        status,
                        goods,
                        total,
                        date.fromisoformat(ordered_on),
                        due,
                        last_day,
                    )
                )
        return orders

    def query(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self._path)) as connection:
            return connection.execute(query).fetchall()
