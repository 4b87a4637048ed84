"""What the service is asked and what it answers, as JSON; its OpenAPI document comes from this."""

from typing import Annotated, Literal

from fastapi import Path, Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
)

from musketeers.data.columns import LONGEST_ID

LEAST, LARGEST = -(10**19), 2 * 10**19
"""Of an integer id.  Those of 64 bits are within, and the document can say it: to the readers of
JSON that have floats alone, 2**64 is another number."""
MOST_K = 500
MOST_USERS = 256
MOST_ITEMS = 1000
"""Of one list of ids in a request."""


def _short(text: str) -> str:
    if len(text.encode()) > LONGEST_ID:
        raise ValueError(f"an id has at most {LONGEST_ID} bytes")
    return text


def _whole(number: object) -> object:
    """JSON has one type of numbers, and 3.0 is an integer; a larger float may be another id's."""
    if isinstance(number, float) and abs(number) <= 2**53 and number.is_integer():
        return int(number)
    return number


WHOLE = BeforeValidator(_whole)
"""Stands last: the document would lose what stands behind it."""
Text = Annotated[
    StrictStr, StringConstraints(min_length=1, max_length=LONGEST_ID), AfterValidator(_short)
]
AnyId = Annotated[
    Annotated[StrictInt, Field(ge=LEAST, le=LARGEST), WHOLE] | Text,
    Field(
        description="Integers are numbers, in a request also strings; all other ids are strings."
    ),
]
Ids = Annotated[list[AnyId], Field(max_length=MOST_ITEMS)]
K = Annotated[StrictInt, Field(ge=1, le=MOST_K, description="Items in the list, at most."), WHOLE]
ExcludeSeen = Annotated[
    StrictBool, Field(description="Leave out what the domain knows the user to have.")
]
Strategy = Annotated[
    Literal["personalised", "cross_domain", "popular"],
    Field(
        description="Where the list comes from: the user's history in the domain; that in other "
        "domains; what is popular."
    ),
]
Fallback = Annotated[
    Literal["popular", "none"],
    Field(description="For a user of whom nothing is known: what is popular, or a 404."),
]
DomainName = Annotated[str, Path(description="A domain of the model.", examples=["movie"])]
_PATH = "percent-encoded where it has other characters than letters, digits, - and _."
UserId = Annotated[
    str,
    Path(
        description=f"A user's id; {_PATH}", examples=["user-017"], min_length=1,
        max_length=LONGEST_ID,
    ),
]  # fmt: skip
ItemId = Annotated[
    str,
    Path(
        description=f"An item's id; {_PATH}", examples=["movie-03"], min_length=1,
        max_length=LONGEST_ID,
    ),
]  # fmt: skip
QueryK = Annotated[int, Query(ge=1, le=MOST_K, description="Items in the list, at most.")]
QueryAlso = Annotated[
    str | None, Query(description="Another domain that knows the user, too.", max_length=LONGEST_ID)
]
QueryExcludeSeen = Annotated[
    bool, Query(description="Leave out what the domain knows the user to have.")
]


class Closed(BaseModel):
    """A document without further fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Wish(Closed):
    """A list that somebody wants."""

    user_id: AnyId
    k: K = 10
    exclude_seen: ExcludeSeen = True
    exclude_ids: Annotated[Ids, Field(description="Items that are not wanted.")] = []
    allow_ids: Annotated[
        Ids | None, Field(description="The only items that are wanted; null: all.")
    ] = None
    recent: Annotated[
        dict[str, Ids],
        Field(
            max_length=64,
            description="What the user has just done, by domain, in this one or in others. The "
            "list is made as if the model knew.",
        ),
    ] = {}
    fallback: Fallback = "popular"

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "user-017", "k": 3},
                {"user_id": "somebody new", "k": 3, "recent": {"tv": ["tv-03", "tv-09"]}},
            ]
        }
    )


class Wishes(Closed):
    """Lists for several users."""

    user_ids: Annotated[list[AnyId], Field(min_length=1, max_length=MOST_USERS)]
    k: K = 10
    exclude_seen: ExcludeSeen = True
    fallback: Fallback = "popular"

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_ids": ["user-017", "user-042"], "k": 3}]}
    )


class Met(Closed):
    """Items that a user has just met."""

    domain: Annotated[
        StrictStr, Field(description="The domain of the items.", max_length=LONGEST_ID)
    ]
    item_ids: Annotated[list[AnyId], Field(min_length=1, max_length=MOST_ITEMS)]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"domain": "tv", "item_ids": ["tv-03"]}]}
    )


class Question(Closed):
    """Whose list is to be explained."""

    user_id: AnyId
    k: Annotated[StrictInt, Field(ge=1, le=50, description="Length of the list."), WHOLE] = 10

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "user-017", "k": 5}]})


class Item(Closed):
    """One place of a list."""

    rank: Annotated[int, Field(ge=1)]
    id: AnyId
    score: Annotated[float, Field(description="Orders this list; does not compare between lists.")]


class Answer(Closed):
    """What every answer of the model ends with."""

    model_version: Annotated[str, Field(description="The version that all of it comes from.")]
    request_id: Annotated[str, Field(description="What the operator's log calls this request.")]


class Recommended(Answer):
    """The best items of a domain for a user; fewer than k where no more are left."""

    user_id: AnyId
    domain: str
    items: list[Item]
    strategy: Strategy
    degraded: Annotated[
        bool, Field(description="Whether something that the user did could not be used.")
    ]


class OfOne(Closed):
    """The list of one of several users."""

    user_id: AnyId
    status: Annotated[Literal[200, 404], Field(description="404: nothing is known of the user.")]
    items: list[Item]
    strategy: Strategy | None


class RecommendedAll(Answer):
    """Lists for several users, in the order in which they were asked for."""

    domain: str
    results: list[OfOne]
    degraded: bool


class Similar(Answer):
    """The items of a domain that are most like one of it."""

    item_id: AnyId
    domain: str
    by: Annotated[
        Literal["cosine", "weight"],
        Field(
            description="The cosine of the items' vectors; or, in a linear model, what having met "
            "the one adds to the score of the other."
        ),
    ]
    items: list[Item]


class Moved(Closed):
    """What happens to a list with something left out."""

    kept: Annotated[
        float | None, Field(ge=0, le=1, description="The share of the list that stays.")
    ]
    leaves: list[AnyId]
    enters: list[AnyId]


class MovedByItem(Moved):
    """With one of the user's own items left out."""

    id: AnyId


class MovedBySource(Moved):
    """With all that one other domain tells of the user left out."""

    domain: str
    attention: Annotated[
        float | None,
        Field(description="CAT-ART's weight of that domain, which need not be what helps."),
    ]


class Untold(Closed):
    """The list that the user would get if no other domain told anything."""

    items: list[Item]
    strategy: Strategy


class Explained(Answer):
    """A list, and what moved it, found by leaving each thing out."""

    user_id: AnyId
    domain: str
    strategy: Strategy
    items: list[Item]
    own: list[MovedByItem]
    sources: list[MovedBySource]
    without_transfer: Untold | None


class History(Answer):
    """What the model knows of a user, by domain."""

    user_id: AnyId
    domains: dict[str, list[AnyId]]


class Somebody(Answer):
    """A user whom a domain knows, picked at random."""

    user_id: AnyId
    domain: str


class Stored(Closed):
    """What has been kept, for good."""

    stored: Annotated[int, Field(ge=0)]
    request_id: str


class Kept(Closed):
    """What is kept of a user since the model was fitted, newest first."""

    user_id: AnyId
    domains: dict[str, list[AnyId]]
    request_id: str


class DomainFacts(Closed):
    """A domain as it is served."""

    items: int
    users: Annotated[int, Field(description="With a history in this domain.")]
    model: str
    item_ids: Annotated[str, Field(description="What its ids are: integers, text, ...")]
    transfers: Annotated[
        bool, Field(description="Whether other domains' users get lists of theirs.")
    ]


class Features(Closed):
    """What this server does beside recommending."""

    explain: bool
    across: Annotated[
        bool, Field(description="Whether what is done in other domains is folded in, by now.")
    ]
    fresh: bool


class Models(Closed):
    """What is being served."""

    model_version: str
    run: str
    loaded_at: AwareDatetime
    users: int
    user_ids: str
    domains: dict[str, DomainFacts]
    features: Features
    request_id: str


class VersionFacts(Closed):
    """A version that was asked for."""

    model_version: str | None
    run: str
    state: Literal["serving", "previous", "refused"]
    at: AwareDatetime
    fault: str | None


class VersionList(Closed):
    """The one that serves, the one before it, and those that were refused of late."""

    versions: list[VersionFacts]
    request_id: str


class Swapped(Closed):
    """Which version serves now."""

    model_version: str
    previous: Annotated[str | None, Field(description="The one to which a rollback would go.")]
    request_id: str


class State(Closed):
    """Of the server."""

    status: Literal["ok"]
