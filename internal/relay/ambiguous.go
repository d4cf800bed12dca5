package relay

import (
	"context"
	"slices"
	"time"
)

const (
	// outcomeWait is how long a claim is kept for the outcome of an ambiguous publish. An outcome published
	// before is recorded by then, unless the recorder lags behind by more.
	outcomeWait = 5 * time.Second
	// postponeMax bounds how long unrecorded outcomes postpone an ambiguous publish or a sweep. An outcome that
	// no running ingest can record must not block them forever. A repeat that comes too early is sent under the
	// same event_id, which TikTok de-duplicates.
	postponeMax = time.Hour
)

// ambiguousPublishes holds the purchases whose last publish the stream reported as a duplicate, by ID. Such
// an answer has two explanations. Either an earlier publish was stored and its acknowledgement lost: then the
// message is queued, or its outcome is on the way. Or the row was recreated (restored or emptied database)
// beside a stream that remembers the message ID: then no message is queued.
//
// Time tells them apart. The claim is kept until every outcome of that time is recorded, and is then
// released. A purchase with an outcome is never claimed again. One that is claimed again is published under
// the next generation: the stream rejects that as still queued while it holds the message, and stores it
// otherwise.
type ambiguousPublishes map[string]ambiguousPublish

type ambiguousPublish struct {
	generation int       // the highest one published
	due        time.Time // when the claim may be released
	released   time.Time // when it was; zero: it is still held
}

// add records a duplicate. A claim that ran out and was published once more keeps its due time.
func (a ambiguousPublishes) add(id string, generation int, now time.Time) {
	if a[id].generation != generation {
		a[id] = ambiguousPublish{generation: generation, due: now.Add(outcomeWait)}
	}
}

func (a ambiguousPublishes) remove(id string) { delete(a, id) }

// generation returns the generation under which to publish a claim.
func (a ambiguousPublishes) generation(c Claim) int {
	p, ok := a[c.ID]
	if ok && !p.released.IsZero() {
		a.remove(c.ID)
		p.generation++
	}
	return max(c.Generation, p.generation)
}

// due returns the purchases whose claims may be released, and drops those that were released and not claimed
// again: they have an outcome.
func (a ambiguousPublishes) due(now time.Time) (ids []string) {
	for id, p := range a {
		switch {
		case p.released.IsZero() && !now.Before(p.due):
			ids = append(ids, id)
		case !p.released.IsZero() && now.After(p.released.Add(ClaimTimeout)):
			a.remove(id)
		}
	}
	return ids
}

// releaseAmbiguous releases the claims that are due. While outcomes wait to be recorded (Postgres or the
// queue was down), a purchase's own may be among them, and its claim is kept for up to postponeMax.
func (r *Relay) releaseAmbiguous(ctx context.Context) error {
	now := r.now()
	ids := r.ambiguous.due(now)
	if len(ids) == 0 {
		return nil
	}
	lag, err := r.queue.OutcomeLag(ctx)
	if err != nil {
		return err
	}
	if lag > outcomeWait {
		ids = slices.DeleteFunc(ids, func(id string) bool {
			return now.Before(r.ambiguous[id].due.Add(postponeMax))
		})
	}
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	if err := r.outbox.Release(ctx, ids); err != nil {
		return err
	}
	for _, id := range ids {
		p := r.ambiguous[id]
		p.released = now
		r.ambiguous[id] = p
	}
	return nil
}
