"""The desk's twelve tools over the shop's database, as the customer who is signed in.

Each run changes its own copy of `shop.db` in its workspace. Whose orders may be touched is decided here, by
`customer_id` of the task's facts, never by an argument of the model; so are dates. Nothing leaves the
machine: "sending" an invoice adds a row to the table `outbox`.
"""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import Field

from tools.context import ToolContext

OrderId = Annotated[str, Field(pattern=r"^[0-9]{5}$")]
Sku = Annotated[str, Field(pattern=r"^[A-Z]{2}-[0-9]{2}$")]
Product = Annotated[str, Field(min_length=2, max_length=40)]
Address = Annotated[str, Field(min_length=5, max_length=60)]
Email = Annotated[str, Field(min_length=5, max_length=50)]
Reason = Literal["damaged", "wrong_size", "not_needed"]
Size = Literal["S", "M", "L", "XL"]

COPIED = ("order_id", "sku", "product", "address", "email")
"""Arguments that are taken from what the customer or a tool said, and never made up."""

LATE_DAYS = 5
"""A parcel counts as lost this many days after it was due."""


def load_tools(context: ToolContext) -> list[BaseTool]:
    """The tools of one run, for the customer in its facts."""
    desk = Desk(context)
    return [
        _tool(desk.list_orders, "read", "The customer's newest orders."),
        _tool(desk.get_order, "read", "Items, total and return date."),
        _tool(desk.track_parcel, "read", "Where an order is, when it arrives."),
        _tool(desk.check_stock, "read", "Stock and price of a product."),
        _tool(desk.return_status, "read", "State of a return and its refund."),
        _tool(desk.cancel_order, "workspace", "Cancel an order."),
        _tool(desk.change_address, "workspace", "Change where an order goes."),
        _tool(desk.update_email, "workspace", "Change the customer's email."),
        _tool(desk.send_invoice, "workspace", "Email the invoice of an order."),
        _tool(desk.start_return, "workspace", "Open a return of one item."),
        _tool(desk.exchange_item, "workspace", "Exchange an item for another size."),
        _tool(desk.refund_order, "workspace", "Refund a parcel that never came."),
    ]


class Desk:
    """What the tools do. Every method opens and closes its own connection."""

    def __init__(self, context: ToolContext) -> None:
        self._context = context
        self._database = _database()

    def list_orders(self) -> str:
        rows = self._rows(
            "select id, status, (select group_concat(name, ', ') from (select name from order_items "
            "join products using (sku) where order_id = id order by sku)) "
            "from orders where customer_id = ? order by ordered_on desc, id limit 3",
            self._customer,
        )
        return "; ".join(f"{items}: {order} {status}" for order, status, items in rows) or "There are none."

    def get_order(self, order_id: OrderId) -> str:
        order = self._order(order_id)
        rows = self._rows(
            "select sku, name, size, price from order_items join products using (sku) where order_id = ? order by sku",
            order_id,
        )
        items = ", ".join(f"{name} {sku}" + (f" size {size}" if size else "") for sku, name, size, _ in rows)
        cost = f"Order {order_id} cost {sum(row[3] for row in rows)} euros."
        return f"Order {order_id} holds {items}. {cost} {self._window(order)}."

    def track_parcel(self, order_id: OrderId) -> str:
        order = self._order(order_id)
        return f"Order {order_id} {self._whereabouts(order)}."

    def check_stock(self, product: Product) -> str:
        rows = self._rows(
            "select name, price, stock, restock_on from products where lower(name) = ?1 or lower(sku) = ?1",
            product.strip().lower().removeprefix("the "),
        )
        if not rows:
            raise ToolException(f"There is no product named {product}.")
        name, price, stock, restock = rows[0]
        if stock:
            return f"{name}: in stock at {price} euros."
        return f"{name}: sold out until {self._spoken(restock)}."

    def return_status(self, order_id: OrderId) -> str:
        self._order(order_id)
        rows = self._rows(
            "select status, arrived_on, paid_on, price from returns join products using (sku) where order_id = ?",
            order_id,
        )
        if not rows:
            raise ToolException(f"Order {order_id} has no return.")
        status, arrived, paid, price = rows[0]
        if status == "awaited":
            return f"The return of order {order_id} has not arrived yet."
        if status == "arrived":
            day, pay = self._spoken(arrived), self._spoken(paid)
            return f"The return of order {order_id} arrived on {day}; {price} euros come by {pay}."
        return f"The refund of {price} euros for order {order_id} was paid on {self._spoken(paid)}."

    def cancel_order(self, order_id: OrderId) -> str:
        self._unshipped(order_id, "cancelled")
        self._change("update orders set status = 'cancelled' where id = ?", order_id)
        return f"Order {order_id} is cancelled."

    def change_address(self, order_id: OrderId, address: Address) -> str:
        self._unshipped(order_id, "redirected")
        self._change("update orders set address = ? where id = ?", address, order_id)
        return f"Order {order_id} now goes to {address}."

    def update_email(self, email: Email) -> str:
        if "@" not in email or "." not in email.rpartition("@")[2]:
            raise ToolException(f"{email} is not an email address.")
        self._change("update customers set email = ? where id = ?", email, self._customer)
        return f"Your email is now {email}."

    def send_invoice(self, order_id: OrderId) -> str:
        self._order(order_id)
        email = self._rows("select email from customers where id = ?", self._customer)[0][0]
        self._change(
            "insert into outbox (customer_id, order_id, kind) values (?, ?, 'invoice')",
            self._customer,
            order_id,
        )
        return f"The invoice for order {order_id} was sent to {email}."

    def start_return(self, order_id: OrderId, sku: Sku, reason: Reason) -> str:
        name, last_day = self._returnable(order_id, sku, "returned")
        row = (f"R{order_id}", order_id, sku, reason)
        self._change("insert or replace into returns values (?, ?, ?, ?, 'awaited', null, null)", *row)
        return f"Return R{order_id} is open: send the {name} back by {last_day}."

    def exchange_item(self, order_id: OrderId, sku: Sku, size: Size) -> str:
        name, last_day = self._returnable(order_id, sku, "exchanged")
        if not self._rows("select 1 from products where sku = ? and sized = 1", sku):
            raise ToolException(f"{name} has no sizes.")
        self._change("update order_items set size = ? where order_id = ? and sku = ?", size, order_id, sku)
        return f"{name} exchanged for size {size}: send the old item back by {last_day}."

    def refund_order(self, order_id: OrderId) -> str:
        order = self._order(order_id)
        overdue = self._today - date.fromisoformat(order["due_on"])
        if order["status"] == "refunded":
            raise ToolException(f"Order {order_id} is already refunded.")
        if order["status"] != "shipped" or overdue < timedelta(days=LATE_DAYS):
            raise ToolException(f"Order {order_id} is not lost: it {self._whereabouts(order)}.")
        self._change("update orders set status = 'refunded' where id = ?", order_id)
        query = "select sum(price) from order_items join products using (sku) where order_id = ?"
        return f"Order {order_id} is refunded: {self._rows(query, order_id)[0][0]} euros."

    @property
    def _customer(self) -> str:
        return self._context.facts["customer_id"]

    @property
    def _today(self) -> date:
        return date.fromisoformat(self._context.facts["today"])

    def _order(self, order_id: str) -> sqlite3.Row:
        rows: list[sqlite3.Row] = self._rows("select * from orders where id = ?", order_id)
        if not rows:
            raise ToolException(f"There is no order {order_id}.")
        if rows[0]["customer_id"] != self._customer:
            raise ToolException(f"Order {order_id} belongs to another customer.")
        return rows[0]

    def _unshipped(self, order_id: str, act: str) -> None:
        status = self._order(order_id)["status"]
        if status == "cancelled":
            raise ToolException(f"Order {order_id} is already cancelled.")
        if status != "packing":
            raise ToolException(f"Order {order_id} has shipped and cannot be {act}.")

    def _returnable(self, order_id: str, sku: str, act: str) -> tuple[str, str]:
        """Name of the item and last day to send it back; raises ToolException when that is past."""
        order = self._order(order_id)
        query = "select name from order_items join products using (sku) where order_id = ? and sku = ?"
        names = self._rows(query, order_id, sku)
        if not names:
            raise ToolException(f"Order {order_id} holds no item {sku}.")
        if order["status"] != "delivered":
            raise ToolException(f"Order {order_id} is not delivered yet.")
        last_day = self._last_day(order)
        if last_day < self._today:
            raise ToolException(f"Order {order_id} cannot be {act}: the window closed on {self._spoken(last_day)}.")
        return names[0][0], self._spoken(last_day)

    def _last_day(self, order: sqlite3.Row) -> date:
        return date.fromisoformat(order["delivered_on"]) + timedelta(days=self._database.RETURN_DAYS)

    def _window(self, order: sqlite3.Row) -> str:
        if order["status"] != "delivered":
            return f"It is {order['status']}"
        last_day = self._last_day(order)
        if last_day < self._today:
            return f"Its return window closed on {self._spoken(last_day)}"
        return f"Its return window is open until {self._spoken(last_day)}"

    def _whereabouts(self, order: sqlite3.Row) -> str:
        due, status = self._spoken(order["due_on"]), order["status"]
        if status == "delivered":
            return f"was delivered on {self._spoken(order['delivered_on'])}"
        if status == "packing":
            return f"is being packed and arrives on {due}"
        if status != "shipped":
            return f"is {status}"
        late = date.fromisoformat(order["due_on"]) < self._today
        return f"is late: it was due on {due}" if late else f"is on its way and arrives on {due}"

    def _spoken(self, day: date | str) -> str:
        return str(self._database.spoken(day))

    def _path(self) -> Path:
        path, original = self._context.workspace / "shop.db", self._context.project / "shop.db"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if original.exists():
                shutil.copyfile(original, path)
            else:
                self._database.build(path)
        return path

    def _rows(self, query: str, *values: str) -> list[Any]:
        with closing(sqlite3.connect(self._path())) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query, values).fetchall()

    def _change(self, statement: str, *values: str) -> None:
        with closing(sqlite3.connect(self._path())) as connection, connection:
            # The copy lives as long as its run: it need not outlast a power cut, so do not wait for the disk.
            connection.execute("pragma synchronous = off")
            connection.execute(statement, values)


def _tool(function: Callable[..., str], effect: Literal["read", "workspace"], description: str) -> BaseTool:
    tool = StructuredTool.from_function(func=function, name=function.__name__, description=description)
    tool.metadata = {"effect": effect, "copied": [name for name in COPIED if name in tool.args]}
    return tool


@cache
def _database() -> ModuleType:
    """The sibling file, found by path: this file is loaded by path too, so no import name leads there."""
    path = Path(__file__).with_name("desk_database.py")
    spec = importlib.util.spec_from_file_location("desk_database", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded; the desk needs it beside desk_tools.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
