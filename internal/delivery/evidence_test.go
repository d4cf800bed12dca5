package delivery

import (
	"fmt"
	"strings"
	"testing"

	"purchase-relay/internal/purchase"
)

// history feeds answers to evidence. A step is "ids: answer -> finding fate": "A B: page -> unclear split".
// The answers: ok, page, known (40050), partial (20001), access, rate, silent; everything else is a rejection
// with that wording.
func history(t *testing.T, steps ...string) *evidence {
	t.Helper()
	e := newEvidence()
	var seq uint64
	for i, step := range steps {
		about, want, _ := strings.Cut(step, " -> ")
		who, said, _ := strings.Cut(about, ": ")
		seq++
		r := requested{seq: seq, ids: strings.Fields(who)}
		found, what := e.weigh(spoken(said), r, seq)
		got := [...]string{"unclear", "healthy", "failing", "denied"}[found] + " " +
			[...]string{"retry", "delivered", "split", "dead"}[what]
		if got != want {
			t.Errorf("step %d, %s: %s, want %s", i+1, about, got, want)
		}
	}
	return &e
}

func spoken(said string) purchase.Answer {
	switch said {
	case "ok":
		return answer(purchase.ClassDelivered, 0)
	case "known":
		return answer(purchase.ClassDelivered, codeDuplicate)
	case "partial":
		return answer(purchase.ClassRefused, codePartial)
	case "page":
		return answer(purchase.ClassBlocked, 403)
	case "access":
		return answer(purchase.ClassAccess, 40105)
	case "rate":
		return answer(purchase.ClassRate, 40100)
	case "silent":
		return answer(purchase.ClassRetry, 503)
	}
	a := answer(purchase.ClassRefused, 40002)
	a.Message = said
	return a
}

// repeat writes a step for each of n events of their own; %d is the event's number.
func repeat(n int, step string) (steps []string) {
	for i := range n {
		steps = append(steps, fmt.Sprintf(step, i))
	}
	return steps
}

func join(parts ...[]string) (all []string) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestEvidence_Answers(t *testing.T) {
	t.Parallel()
	history(t,
		"A: ok -> healthy delivered",
		"A B: ok -> healthy delivered",
		"A: known -> healthy delivered",
		"A B: known -> healthy split",
		"A B: partial -> healthy split",
		"A B: Invalid parameter -> healthy split",
		"A: Invalid parameter -> healthy dead",
		"A: partial -> healthy dead",
		"A B: access -> denied retry",
		"A: rate -> unclear retry",
		"A: silent -> failing retry",
		"A B: page -> unclear split",
		"A: page -> unclear retry",
	)
}

// A single event is sent twice before a partial rejection counts.
func TestEvidence_FirstPartialRefusal(t *testing.T) {
	t.Parallel()
	e := newEvidence()
	if found, what := e.weigh(spoken("partial"), requested{seq: 1, ids: []string{"A"}, first: true},
		1); found != healthy ||
		what != fateRetry {
		t.Errorf("finding %v, fate %v; want healthy, retry", found, what)
	}
}

func TestEvidence_RowOfRefusals(t *testing.T) {
	t.Parallel()
	nine := repeat(9, "E%[1]d: Event E%[1]d is not valid -> healthy dead")
	for name, steps := range map[string][]string{
		"the tenth is the last": join(nine, []string{
			"X: Event X is not valid -> denied dead",
			"Y: Event Y is not valid -> denied retry",
			"Z: Something else -> denied retry",
			"Y Z: Something else -> denied split",
			"Y: ok -> healthy delivered",
			"Z: Something else -> healthy dead",
		}),
		"a delivery ends the row": join(nine, []string{"X: ok -> healthy delivered"}, nine),
		"a split of known events does not": join(nine, []string{
			"Y Z: known -> healthy split", "X: Event X is not valid -> denied dead",
		}),
		"other words are another row": join(nine, repeat(9, "F%d: Currency is not supported -> healthy dead"),
			[]string{
				"X: Currency is not supported -> denied dead", "Y: Event Y is not valid -> denied retry",
			}),
		"no answer and a page do not count": join(nine, []string{
			"X: silent -> failing retry", "X: page -> unclear retry", "X: Event X is not valid -> denied dead",
		}),
	} {
		t.Run(name, func(t *testing.T) { history(t, steps...) })
	}
}

// A delivery that was sent before the row began proves nothing against it.
func TestEvidence_EarlierDeliveryDoesNotEndTheRow(t *testing.T) {
	t.Parallel()
	e := newEvidence()
	for i := range refusalRow - 1 {
		e.weigh(spoken("Invalid parameter"), requested{seq: uint64(10 + i), ids: []string{fmt.Sprint(i)}}, 10)
	}
	e.weigh(spoken("ok"), requested{seq: 9, ids: []string{"slow"}}, 20)
	if found, _ := e.weigh(spoken("Invalid parameter"), requested{seq: 21, ids: []string{"X"}},
		21); found != denied {
		t.Errorf("finding = %v, want denied", found)
	}
	e.weigh(spoken("ok"), requested{seq: 21, ids: []string{"slower"}}, 22)
	if found, what := e.weigh(spoken("Invalid parameter"), requested{seq: 23, ids: []string{"Y"}},
		23); found != denied ||
		what != fateRetry {
		t.Errorf("finding %v, fate %v; want denied, retry", found, what)
	}
}

// Rejections with many wordings and no delivery are the settings' fault.
func TestEvidence_EndlessWordings(t *testing.T) {
	t.Parallel()
	e := newEvidence()
	dead := 0
	for i := range 2 * maxWordings {
		word := strings.Repeat("x", i+1)
		if _, what := e.weigh(spoken(word), requested{seq: uint64(i), ids: []string{"A"}},
			uint64(i)); what == fateDead {
			dead++
		}
	}
	if dead != maxWordings {
		t.Errorf("%d dead, want %d", dead, maxWordings)
	}
}

func TestEvidence_Pages(t *testing.T) {
	t.Parallel()
	for name, steps := range map[string][]string{
		"an event that meets them while others pass is dead": {
			"A: page -> unclear retry", "B: ok -> healthy delivered", "A: page -> unclear retry", "A: page -> unclear dead",
		},
		"a refusal passes as well: TikTok itself spoke": {
			"A: page -> unclear retry", "B C: Invalid -> healthy split", "A: page -> unclear retry", "A: page -> unclear dead",
		},
		"it passes in the end": {
			"A: page -> unclear retry", "B: ok -> healthy delivered", "A: page -> unclear retry", "A: ok -> healthy delivered",
			"A: page -> unclear retry",
		},
		"three events: it is the destination": {
			"A: page -> unclear retry", "B: page -> unclear retry", "C: page -> denied retry", "D: page -> denied retry", "A: page -> denied retry",
		},
		"one event and no other: stop and wait, until another passes": {
			"A: page -> unclear retry", "A: page -> unclear retry", "A: page -> denied retry", "A: page -> denied retry",
			"B: ok -> healthy delivered", "A: page -> unclear retry", "A: page -> unclear dead",
		},
		"what passed before proves nothing": {
			"B: ok -> healthy delivered", "A: page -> unclear retry", "A: page -> unclear retry", "A: page -> denied retry",
		},
		"a block begins while one event is under suspicion": {
			"A: page -> unclear retry", "B: ok -> healthy delivered", "C: page -> unclear retry", "D: page -> unclear retry",
			"A: page -> denied retry", "E: page -> denied retry", "A: page -> denied retry",
		},
		"a block that many events met is held against none of them": {
			"A: page -> unclear retry", "B: page -> unclear retry", "C: page -> denied retry", "D: ok -> healthy delivered",
			"A: page -> unclear retry", "A: page -> unclear retry", "A: page -> denied retry", "B: ok -> healthy delivered", "A: ok -> healthy delivered",
		},
		"two bad ones among few": {
			"A: page -> unclear retry", "B: page -> unclear retry", "A: page -> denied retry",
			"C: ok -> healthy delivered", "A: page -> unclear retry", "B: page -> unclear retry", "A: page -> denied retry",
			"D: ok -> healthy delivered", "A: page -> unclear retry", "B: page -> unclear retry", "A: page -> denied retry",
			"E: ok -> healthy delivered", "A: page -> unclear retry", "B: page -> unclear retry", "A: page -> denied retry",
			"F: ok -> healthy delivered", "A: page -> unclear dead", "B: page -> unclear dead",
		},
		"passing and failing in turn proves nothing": {
			"A: page -> unclear retry", "B: ok -> healthy delivered", "C: page -> unclear retry", "D: ok -> healthy delivered",
			"A: page -> unclear retry", "E: ok -> healthy delivered", "C: page -> unclear retry", "F: ok -> healthy delivered",
		},
	} {
		t.Run(name, func(t *testing.T) { history(t, steps...) })
	}
}

// Many bad events at one time are told apart where enough others pass.
func TestEvidence_ManyPages(t *testing.T) {
	t.Parallel()
	e := history(
		t,
		join(repeat(2, "bad%d: page -> unclear retry"), repeat(40, "good%d: ok -> healthy delivered"),
			repeat(2, "bad%d: page -> unclear retry"), repeat(2, "bad%d: page -> unclear dead"))...)
	if len(e.suspects) != 0 {
		t.Errorf("%d suspects are left", len(e.suspects))
	}
}

// A long block with changing probes keeps little in memory.
func TestEvidence_KeepsLittle(t *testing.T) {
	t.Parallel()
	e := newEvidence()
	for i := range 2 * maxSuspects {
		e.weigh(spoken("page"), requested{seq: uint64(i), ids: []string{fmt.Sprint(i)}}, uint64(i))
	}
	if len(e.suspects) > maxSuspects || len(e.row) > pageRow {
		t.Errorf("%d suspects, a row of %d", len(e.suspects), len(e.row))
	}
}

func TestWordingOf(t *testing.T) {
	t.Parallel()
	for name, same := range map[string][]string{
		"an index": {
			"Batch.0.properties.value: Not a valid number",
			"Batch.17.properties.value: Not a valid number",
		},
		"the event's id":   {"Event ev was rejected", "Event ev was  rejected"},
		"a value":          {`Invalid currency "xyz"`, `Invalid currency "a b c"`},
		"another value":    {"Invalid currency 'xyz'", "Invalid currency 'abc'", "invalid currency `q`"},
		"a number":         {"Amount 12.50 is too large", "Amount 7.25 is too large"},
		"another id":       {"Request 7fA-3_x failed", "Request 20260102abc failed"},
		"an address":       {"Bad address [redacted]", "Bad address [redacted]"},
		"words of its own": {"Don't do this, can't be done", "don't do this, can't be done"},
	} {
		want := wordingOf(spoken(same[0]), "ev")
		for _, message := range same[1:] {
			if got := wordingOf(spoken(message), "ev"); got != want {
				t.Errorf("%s: %q and %q", name, got, want)
			}
		}
	}
	different := map[string]bool{}
	for _, message := range []string{
		"Invalid parameter", "Batch.0.properties.value: Not a valid number",
		"Batch.0.properties.currency: Not a valid number", "Batch.0.event_id: Not a valid string",
	} {
		different[wordingOf(spoken(message), "ev")] = true
	}
	if len(different) != 4 {
		t.Errorf("different refusals are one: %v", different)
	}
	a := spoken("Invalid parameter")
	a.Code = new(40007)
	if wordingOf(a, "ev") == wordingOf(spoken("Invalid parameter"), "ev") {
		t.Error("two codes are one wording")
	}
}
