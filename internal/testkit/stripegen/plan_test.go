package stripegen_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v76/webhook"

	"purchase-relay/internal/testkit/stripegen"
)

// numbered makes n bodies that say which they are.
func numbered(n int) [][]byte {
	bodies := make([][]byte, n)
	for i := range bodies {
		bodies[i] = []byte(strconv.Itoa(i))
	}
	return bodies
}

func number(t *testing.T, body []byte) int {
	t.Helper()
	i, err := strconv.Atoi(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// order is which event arrives when, by its number.
func order(t *testing.T, plan []stripegen.Arrival) []int {
	t.Helper()
	numbers := make([]int, len(plan))
	for i, a := range plan {
		numbers[i] = number(t, a.Body)
	}
	return numbers
}

func TestPlanWithoutDisorderIsTheOrderOfMaking(t *testing.T) {
	bodies := numbered(3)
	plan, withheld := stripegen.Disorder{Seed: 7, Every: time.Second}.Plan(bodies)
	want := []stripegen.Arrival{{After: 0, Body: bodies[0]}, {After: time.Second, Body: bodies[1]}, {After: 2 * time.Second, Body: bodies[2]}}
	if diff := cmp.Diff(want, plan); diff != "" || withheld != nil {
		t.Errorf("withheld %s; %s", withheld, diff)
	}
	if plan, withheld := (stripegen.Disorder{Delay: time.Hour, Reorder: 1, Duplicates: 1}).Plan(nil); plan != nil || withheld != nil {
		t.Errorf("of nothing: %v, %v", plan, withheld)
	}
}

func TestPlanIsRepeatedByItsSeed(t *testing.T) {
	d := stripegen.Disorder{Seed: 1, Every: time.Second, Delay: time.Minute, Reorder: 0.2, Duplicates: 0.2, Withhold: 0.2}
	first, firstWithheld := d.Plan(numbered(200))
	again, againWithheld := d.Plan(numbered(200))
	if diff := cmp.Diff(first, again) + cmp.Diff(firstWithheld, againWithheld); diff != "" {
		t.Errorf("the same seed: %s", diff)
	}
	d.Seed = 2
	if other, _ := d.Plan(numbered(200)); cmp.Equal(first, other) {
		t.Error("another seed made the same choices")
	}
}

// Whatever the disorder, no event gets lost unsaid and none arrives before it was made.
func TestPlanKeepsStripesPromises(t *testing.T) {
	const n, every, delay = 300, time.Second, 20 * time.Second
	for seed := range uint64(50) {
		for _, share := range []float64{0, 0.1, 0.5, 1, math.NaN()} {
			d := stripegen.Disorder{Seed: seed, Every: every, Delay: delay, Reorder: share, Duplicates: share, Withhold: share / 2}
			plan, withheld := d.Plan(numbered(n))
			times := make([]int, n)
			latest := time.Duration(0)
			for _, a := range plan {
				i := number(t, a.Body)
				times[i]++
				if a.After < latest || a.After < time.Duration(i)*every {
					t.Fatalf("%+v: event %d arrives after %v, behind %v", d, i, a.After, latest)
				}
				latest = a.After
			}
			for _, body := range withheld {
				i := number(t, body)
				if times[i] != 0 {
					t.Fatalf("%+v: event %d is withheld and arrives", d, i)
				}
				times[i] = 1
			}
			if slices.Min(times) < 1 || slices.Max(times) > 2 || !slices.IsSortedFunc(withheld, func(a, b []byte) int { return number(t, a) - number(t, b) }) {
				t.Fatalf("%+v: the events come %v times, withheld %s", d, times, withheld)
			}
		}
	}
}

func TestPlanDelaysUpToTheBound(t *testing.T) {
	const delay = time.Minute
	plan, _ := stripegen.Disorder{Seed: 1, Every: time.Second, Delay: delay}.Plan(numbered(1000))
	least, most := time.Duration(math.MaxInt64), time.Duration(0)
	for _, a := range plan {
		late := a.After - time.Duration(number(t, a.Body))*time.Second
		least, most = min(least, late), max(most, late)
	}
	if least > time.Second || most < delay-time.Second || most > delay {
		t.Errorf("delays from %v to %v", least, most)
	}
	if slices.IsSorted(order(t, plan)) {
		t.Error("nothing overtook anything")
	}
}

// overtaken counts the events that come behind a later one, and the most that one comes behind.
func overtaken(numbers []int) (count, most int) {
	for at, i := range numbers {
		by := 0
		for _, j := range numbers[:at] {
			if j > i {
				by++
			}
		}
		if by > 0 {
			count++
		}
		most = max(most, by)
	}
	return count, most
}

func TestPlanHoldsEventsBackBehindLaterOnes(t *testing.T) {
	for seed := range uint64(20) {
		for _, d := range []stripegen.Disorder{{Reorder: 1}, {Reorder: 1, Every: time.Second}, {Reorder: 1, Delay: time.Minute}} {
			d.Seed = seed
			if plan, _ := d.Plan(numbered(2)); !slices.Equal(order(t, plan), []int{1, 0}) {
				t.Errorf("%+v of two: %v", d, order(t, plan))
			}
		}
		for _, every := range []time.Duration{0, time.Second} {
			plan, _ := stripegen.Disorder{Seed: seed, Every: every, Reorder: 0.2}.Plan(numbered(1000))
			// Most are behind no more than 10 that keep their place and a few that are held back behind these.
			if count, most := overtaken(order(t, plan)); count < 150 || count > 250 || most < 5 || most > 30 {
				t.Errorf("%d of 1000 were overtaken, one by %d", count, most)
			}
		}
	}
}

func TestPlanSendsSomeTwice(t *testing.T) {
	plan, _ := stripegen.Disorder{Seed: 3, Duplicates: 0.3}.Plan(numbered(1000))
	if twice := len(plan) - 1000; twice < 250 || twice > 350 {
		t.Errorf("%d of 1000 come twice", twice)
	}
	first, between := make(map[int]int), 0
	for at, i := range order(t, plan) {
		if was, seen := first[i]; seen && at > was+1 {
			between++
		} else if !seen {
			first[i] = at
		}
	}
	if between < 150 {
		t.Errorf("only %d come again after another event", between)
	}
	// The second time is later by as much again.
	plan, _ = stripegen.Disorder{Seed: 3, Duplicates: 1, Delay: time.Minute}.Plan(numbered(100))
	if last := plan[len(plan)-1].After; last < 90*time.Second || last > 2*time.Minute {
		t.Errorf("the last repeat comes after %v", last)
	}
}

func TestPlanWithholdsAShare(t *testing.T) {
	plan, withheld := stripegen.Disorder{Seed: 4, Withhold: 0.25}.Plan(numbered(1000))
	if len(plan)+len(withheld) != 1000 || len(withheld) < 200 || len(withheld) > 300 {
		t.Errorf("%d withheld, %d not", len(withheld), len(plan))
	}
	if plan, withheld := (stripegen.Disorder{Withhold: 1}).Plan(numbered(10)); plan != nil || len(withheld) != 10 {
		t.Errorf("all: %v arrive, %d withheld", plan, len(withheld))
	}
}

// transport answers in place of a network, so that time can be the bubble's.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func playing(f transport) *stripegen.Sender {
	return &stripegen.Sender{URL: "http://ingest/", Secret: "whsec_x", Client: &http.Client{Transport: f}}
}

func reply(status int) *http.Response {
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader("said"))}
}

func TestPlayPostsOnTimeUntilTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		posted := map[string][]time.Duration{}
		s := playing(func(r *http.Request) (*http.Response, error) {
			body, err := io.ReadAll(r.Body)
			if err != nil || webhook.ValidatePayloadWithTolerance(body, r.Header.Get("Stripe-Signature"), "whsec_x", time.Second) != nil {
				t.Errorf("%s is not signed anew: %v", body, err)
			}
			mu.Lock()
			defer mu.Unlock()
			posted[string(body)] = append(posted[string(body)], time.Since(began))
			switch tries := len(posted[string(body)]); {
			case string(body) == "0" && tries == 1:
				return nil, errors.New("connection refused")
			case string(body) == "0" && tries == 2:
				return reply(503), nil
			case string(body) == "1":
				return reply(400), nil
			}
			return reply(200), nil
		})
		plan := []stripegen.Arrival{{After: 0, Body: []byte("0")}, {After: time.Second, Body: []byte("1")}, {After: time.Hour, Body: []byte("2")}}
		told := map[string]int{}
		pace := stripegen.Pace{Concurrency: 2, Attempts: 3, Wait: 5 * time.Second}
		err := s.Play(t.Context(), slices.Values(plan), pace, func(a stripegen.Arrival, answer stripegen.Answer) {
			told[string(a.Body)] = answer.Status
		})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string][]time.Duration{
			"0": {0, 5 * time.Second, 15 * time.Second}, "1": {time.Second, 6 * time.Second, 16 * time.Second}, "2": {time.Hour},
		}
		if diff := cmp.Diff(want, posted) + cmp.Diff(map[string]int{"0": 200, "1": 400, "2": 200}, told); diff != "" {
			t.Error(diff)
		}
		if lasted := time.Since(began); lasted != time.Hour {
			t.Errorf("it lasted %v", lasted)
		}
	})
}

func TestPlayKeepsToItsConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		under, release := make(chan struct{}, 10), make(chan struct{})
		s := playing(func(*http.Request) (*http.Response, error) {
			under <- struct{}{}
			<-release
			return reply(200), nil
		})
		plan, _ := stripegen.Disorder{}.Plan(numbered(10))
		ended := make(chan error, 1)
		answered := 0
		go func() {
			ended <- s.Play(t.Context(), slices.Values(plan), stripegen.Pace{Concurrency: 3}, func(stripegen.Arrival, stripegen.Answer) { answered++ })
		}()
		synctest.Wait()
		if len(under) != 3 {
			t.Errorf("%d under way", len(under))
		}
		close(release)
		if err := <-ended; err != nil || answered != 10 {
			t.Errorf("%v after %d", err, answered)
		}
	})
}

func TestPlayEnds(t *testing.T) {
	plan, _ := stripegen.Disorder{Every: time.Second}.Plan(numbered(10))
	none := func(stripegen.Arrival, stripegen.Answer) { t.Error("an answer") }
	t.Run("without an answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			refused := errors.New("connection refused")
			s := playing(func(*http.Request) (*http.Response, error) { return nil, refused })
			if err := s.Play(t.Context(), slices.Values(plan), stripegen.Pace{}, none); !errors.Is(err, refused) {
				t.Errorf("refused: %v", err)
			}
		})
	})
	t.Run("with its context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond)
			defer cancel()
			answered := 0
			s := playing(func(*http.Request) (*http.Response, error) { return reply(200), nil })
			err := s.Play(ctx, slices.Values(plan), stripegen.Pace{}, func(stripegen.Arrival, stripegen.Answer) { answered++ })
			if !errors.Is(err, context.DeadlineExceeded) || answered != 4 {
				t.Errorf("%v after %d", err, answered)
			}
		})
	})
}

func TestDeliverGivesUpWithoutAFurtherWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := playing(func(*http.Request) (*http.Response, error) { return reply(503), nil })
		answer, err := s.Deliver(t.Context(), []byte("{}"), 3, time.Second)
		if err == nil || answer.Status != 503 || time.Since(began) != 3*time.Second {
			t.Errorf("%+v, %v after %v", answer, err, time.Since(began))
		}
	})
}
