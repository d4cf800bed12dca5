package delivery

import (
	"fmt"
	"strings"
	"testing"

	"purchase-relay/internal/purchase"
)

// history feeds answers to faults. A step is "ids: answer -> finding action": "A B: page -> unclear split".
// The answers: ok, page, duplicate, partial, access, rate, none; everything else is a rejection with that
// wording.
func history(t *testing.T, steps ...string) *faults {
	t.Helper()
	f := newFaults()
	var seq uint64
	for i, step := range steps {
		input, want, _ := strings.Cut(step, " -> ")
		ids, text, _ := strings.Cut(input, ": ")
		seq++
		finding, action := f.observe(parseAnswer(text), sentRequest{seq: seq, ids: strings.Fields(ids)}, seq)
		got := [...]string{"unclear", "healthy", "failing", "denied"}[finding] + " " +
			[...]string{"retry", "delivered", "split", "dead"}[action]
		if got != want {
			t.Errorf("step %d, %s: %s, want %s", i+1, input, got, want)
		}
	}
	return &f
}

func parseAnswer(text string) purchase.Answer {
	switch text {
	case "ok":
		return answer(purchase.ClassDelivered, 0)
	case "duplicate":
		return answer(purchase.ClassDelivered, codeDuplicate)
	case "partial":
		return answer(purchase.ClassRefused, codePartial)
	case "page":
		return answer(purchase.ClassBlocked, 403)
	case "access":
		return answer(purchase.ClassAccess, 40105)
	case "rate":
		return answer(purchase.ClassRate, 40100)
	case "none":
		return answer(purchase.ClassRetry, 503)
	}
	a := answer(purchase.ClassRefused, 40002)
	a.Message = text
	return a
}

// observeSingle feeds the answer to one event's request to f.
func (f *faults) observeSingle(text string, seq uint64, id string, latest uint64) (finding, action) {
	return f.observe(parseAnswer(text), sentRequest{seq: seq, ids: []string{id}}, latest)
}

// repeat returns a step for each of n events; %d is the event's number.
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

func TestFaults_ActsOnEachAnswer(t *testing.T) {
	t.Parallel()
	history(t,
		"A: ok -> healthy delivered",
		"A B: ok -> healthy delivered",
		"A: duplicate -> healthy delivered",
		"A B: duplicate -> healthy split",
		"A B: partial -> healthy split",
		"A B: Invalid parameter -> healthy split",
		"A: Invalid parameter -> healthy dead",
		"A: partial -> healthy dead",
		"A B: access -> denied retry",
		"A: rate -> unclear retry",
		"A: none -> failing retry",
		"A B: page -> unclear split",
		"A: page -> unclear retry",
	)
}

func TestFaults_RetriesFirstPartialRejection(t *testing.T) {
	t.Parallel()
	f := newFaults()
	finding, action := f.observe(parseAnswer("partial"), sentRequest{seq: 1, ids: []string{"A"}, first: true}, 1)
	if finding != healthy || action != actionRetry {
		t.Errorf("finding %v, action %v; want healthy, retry", finding, action)
	}
}

func TestFaults_RejectionStreak(t *testing.T) {
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
		"a delivery ends the streak": join(nine, []string{"X: ok -> healthy delivered"}, nine),
		"a split for duplicates does not": join(nine, []string{
			"Y Z: duplicate -> healthy split", "X: Event X is not valid -> denied dead",
		}),
		"another wording is another streak": join(nine, repeat(9, "F%d: Currency is not supported -> healthy dead"),
			[]string{
				"X: Currency is not supported -> denied dead", "Y: Event Y is not valid -> denied retry",
			}),
		"a missing answer and a block page do not count": join(nine, []string{
			"X: none -> failing retry", "X: page -> unclear retry", "X: Event X is not valid -> denied dead",
		}),
	} {
		t.Run(name, func(t *testing.T) { history(t, steps...) })
	}
}

// A delivery that was sent before the streak began does not end it.
func TestFaults_EarlierDeliveryKeepsStreak(t *testing.T) {
	t.Parallel()
	f := newFaults()
	for i := range rejectionStreak - 1 {
		f.observeSingle("Invalid parameter", uint64(10+i), fmt.Sprint(i), 10)
	}
	f.observeSingle("ok", 9, "slow", 20)
	if finding, _ := f.observeSingle("Invalid parameter", 21, "X", 21); finding != denied {
		t.Errorf("finding = %v, want denied", finding)
	}
	f.observeSingle("ok", 21, "slower", 22)
	finding, action := f.observeSingle("Invalid parameter", 23, "Y", 23)
	if finding != denied || action != actionRetry {
		t.Errorf("finding %v, action %v; want denied, retry", finding, action)
	}
}

// Rejections with many wordings and no delivery are the settings' fault.
func TestFaults_LimitsWordings(t *testing.T) {
	t.Parallel()
	f := newFaults()
	dead := 0
	for i := range uint64(2 * maxWordings) {
		if _, action := f.observeSingle(strings.Repeat("x", int(i)+1), i, "A", i); action == actionDead {
			dead++
		}
	}
	if dead != maxWordings {
		t.Errorf("%d dead, want %d", dead, maxWordings)
	}
}

func TestFaults_BlockPages(t *testing.T) {
	t.Parallel()
	for name, steps := range map[string][]string{
		"an event that gets them while others pass is dead": {
			"A: page -> unclear retry", "B: ok -> healthy delivered", "A: page -> unclear retry",
			"A: page -> unclear dead",
		},
		"a rejection by TikTok counts as a pass": {
			"A: page -> unclear retry", "B C: Invalid -> healthy split", "A: page -> unclear retry",
			"A: page -> unclear dead",
		},
		"the event passes in the end": {
			"A: page -> unclear retry", "B: ok -> healthy delivered", "A: page -> unclear retry",
			"A: ok -> healthy delivered", "A: page -> unclear retry",
		},
		"three different events: the destination": {
			"A: page -> unclear retry", "B: page -> unclear retry", "C: page -> denied retry",
			"D: page -> denied retry", "A: page -> denied retry",
		},
		"one event and no other: paused until another passes": {
			"A: page -> unclear retry", "A: page -> unclear retry", "A: page -> denied retry",
			"A: page -> denied retry", "B: ok -> healthy delivered", "A: page -> unclear retry",
			"A: page -> unclear dead",
		},
		"earlier passes do not count": {
			"B: ok -> healthy delivered", "A: page -> unclear retry", "A: page -> unclear retry",
			"A: page -> denied retry",
		},
		"everything is blocked while one event is a suspect": {
			"A: page -> unclear retry", "B: ok -> healthy delivered", "C: page -> unclear retry",
			"D: page -> unclear retry", "A: page -> denied retry", "E: page -> denied retry",
			"A: page -> denied retry",
		},
		"block pages of different events count against none": {
			"A: page -> unclear retry", "B: page -> unclear retry", "C: page -> denied retry",
			"D: ok -> healthy delivered", "A: page -> unclear retry", "A: page -> unclear retry",
			"A: page -> denied retry", "B: ok -> healthy delivered", "A: ok -> healthy delivered",
		},
		"two bad events among few": {
			"A: page -> unclear retry", "B: page -> unclear retry", "A: page -> denied retry",
			"C: ok -> healthy delivered",
			"A: page -> unclear retry", "B: page -> unclear retry", "A: page -> denied retry",
			"D: ok -> healthy delivered",
			"A: page -> unclear retry", "B: page -> unclear retry", "A: page -> denied retry",
			"E: ok -> healthy delivered",
			"A: page -> unclear retry", "B: page -> unclear retry", "A: page -> denied retry",
			"F: ok -> healthy delivered",
			"A: page -> unclear dead", "B: page -> unclear dead",
		},
		"an intermittent block is unclear": {
			"A: page -> unclear retry", "B: ok -> healthy delivered", "C: page -> unclear retry",
			"D: ok -> healthy delivered", "A: page -> unclear retry", "E: ok -> healthy delivered",
			"C: page -> unclear retry", "F: ok -> healthy delivered",
		},
	} {
		t.Run(name, func(t *testing.T) { history(t, steps...) })
	}
}

// Several bad events are found together if enough others pass.
func TestFaults_FindsSeveralBlockedEvents(t *testing.T) {
	t.Parallel()
	f := history(t,
		join(repeat(2, "bad%d: page -> unclear retry"), repeat(40, "good%d: ok -> healthy delivered"),
			repeat(2, "bad%d: page -> unclear retry"), repeat(2, "bad%d: page -> unclear dead"))...)
	if len(f.suspects) != 0 {
		t.Errorf("%d suspects are left, want 0", len(f.suspects))
	}
}

func TestFaults_BoundsMemory(t *testing.T) {
	t.Parallel()
	f := newFaults()
	for i := range uint64(2 * maxSuspects) {
		f.observeSingle("page", i, fmt.Sprint(i), i)
	}
	if len(f.suspects) > maxSuspects || len(f.blocked) > blockStreak {
		t.Errorf("%d suspects, want at most %d; a streak of %d, want at most %d",
			len(f.suspects), maxSuspects, len(f.blocked), blockStreak)
	}
}

func TestWordingOf(t *testing.T) {
	t.Parallel()
	for name, same := range map[string][]string{
		"an index": {
			"Batch.0.properties.value: Not a valid number",
			"Batch.17.properties.value: Not a valid number",
		},
		"the event's ID":  {"Event ev was rejected", "Event ev was  rejected"},
		"a quoted value":  {`Invalid currency "xyz"`, `Invalid currency "a b c"`},
		"other quotes":    {"Invalid currency 'xyz'", "Invalid currency 'abc'", "invalid currency `q`"},
		"a number":        {"Amount 12.50 is too large", "Amount 7.25 is too large"},
		"another ID":      {"Request 7fA-3_x failed", "Request 20260102abc failed"},
		"a redacted text": {"Bad address [redacted]", "Bad address 7fA-3_x"},
	} {
		want := wordingOf(parseAnswer(same[0]), "ev")
		for _, message := range same[1:] {
			if got := wordingOf(parseAnswer(message), "ev"); got != want {
				t.Errorf("%s: wording = %q, want %q", name, got, want)
			}
		}
	}
	different := map[string]bool{}
	for _, message := range []string{
		"Invalid parameter", "Batch.0.properties.value: Not a valid number",
		"Batch.0.properties.currency: Not a valid number", "Batch.0.event_id: Not a valid string",
		"Don't do this, can't be done", "Don't undo this, can't be done",
	} {
		different[wordingOf(parseAnswer(message), "ev")] = true
	}
	if len(different) != 6 {
		t.Errorf("wordings of six rejections = %v, want 6", different)
	}
	a := parseAnswer("Invalid parameter")
	a.Code = new(40007)
	if got := wordingOf(a, "ev"); got == wordingOf(parseAnswer("Invalid parameter"), "ev") {
		t.Errorf("two codes have one wording: %q", got)
	}
}
