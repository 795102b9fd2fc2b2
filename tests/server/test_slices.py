"""Few requests begin in one turn of the event loop, and others have theirs in between."""

from __future__ import annotations

import asyncio

from tokenmill.server.slices import Slices


def test_few_begin_in_a_turn_in_their_order_and_others_come_between() -> None:
    async def run() -> None:
        slices, seen = Slices(at_once=2), list[int | str]()

        async def request(number: int) -> None:
            await slices.begin()
            seen.append(number)

        async def somebody_else() -> None:
            for _ in range(8):
                seen.append("other")
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            gone = [tasks.create_task(request(number)) for number in range(9)][4]
            tasks.create_task(somebody_else())
            await asyncio.sleep(0)
            gone.cancel()
        assert [number for number in seen if number != "other"] == [0, 1, 2, 3, 5, 6, 7, 8]
        runs = "".join("o" if each == "other" else "r" for each in seen).split("o")
        assert max(map(len, runs)) <= 2
        await slices.begin()  # and later there is room at once

    asyncio.run(run())
