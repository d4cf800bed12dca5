package stripegen_test

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v76/webhook"

	"purchase-relay/internal/testkit/stripegen"
)

// transport checks signatures and answers in place of a network, so that time is the bubble's.
type transport func(body string) (status int, err error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	err = webhook.ValidatePayloadWithTolerance(body, r.Header.Get("Stripe-Signature"), "whsec_x", time.Second)
	if err != nil {
		return nil, err
	}
	status, err := f(string(body))
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Body: http.NoBody}, nil
}

func sender(f transport) *stripegen.Sender {
	return &stripegen.Sender{URL: "http://ingest/", Secret: "whsec_x", Client: &http.Client{Transport: f}}
}

// Each event is sent when it is due, and again after 5 and 10 s, each time with a new signature.
func TestSender_PlayRetriesOnTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		sent := map[string][]time.Duration{}
		s := sender(func(body string) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			sent[body] = append(sent[body], time.Since(began))
			switch {
			case body == "a" && len(sent[body]) == 1:
				return 0, errors.New("connection refused")
			case body == "a" && len(sent[body]) == 2:
				return http.StatusServiceUnavailable, nil
			case body == "b":
				return http.StatusBadRequest, nil
			}
			return http.StatusOK, nil
		})
		plan, _ := stripegen.Disorder{Every: time.Minute}.Plan([][]byte{[]byte("a"), []byte("b"), []byte("c")})
		pace := stripegen.Pace{Concurrency: 2, Attempts: 3, Wait: 5 * time.Second}
		got := map[string]int{}
		answered := func(a stripegen.Arrival, answer stripegen.Answer) { got[string(a.Body)] = answer.Status }
		if err := s.Play(t.Context(), slices.Values(plan), pace, answered); err != nil {
			t.Fatal(err)
		}
		want := map[string][]time.Duration{
			"a": {0, 5 * time.Second, 15 * time.Second}, "c": {2 * time.Minute},
			"b": {60 * time.Second, 65 * time.Second, 75 * time.Second},
		}
		diff := cmp.Diff(want, sent) + cmp.Diff(map[string]int{"a": 200, "b": 400, "c": 200}, got)
		if diff != "" {
			t.Error(diff)
		}
	})
}
