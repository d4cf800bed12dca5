package relay

import (
	"context"
	"slices"
	"time"
)

const (
	// outcomeWait is how long a claim is kept for the outcome of an ambiguous publish. By then the outcome of
	// an earlier publish is recorded, unless the recorder has a longer lag.
	outcomeWait = 5 * time.Second
	// postponeMax bounds how long unrecorded outcomes postpone an ambiguous publish or a sweep. Otherwise an
	// outcome that no running ingest can record would block them forever. A premature repeat has the same
	// event_id, which TikTok de-duplicates.
	postponeMax = time.Hour
)

// ambiguousPublishes holds, by ID, the purchases whose last publish the stream reported as a duplicate. There
// are two possible reasons. Either an earlier publish was stored and its acknowledgement lost: the message is
// queued, or its outcome is not yet recorded. Or the row was recreated (restored or emptied database) while
// the stream still remembers the message ID: no message is queued.
//
// To distinguish them, the claim is kept until every outcome published so far is recorded, and then released.
// A purchase with an outcome is not claimed again. Any other is claimed and published under the next
// generation: the stream rejects that as still queued if it holds the message, and stores it otherwise.
type ambiguousPublishes map[string]ambiguousPublish

type ambiguousPublish struct {
	generation int       // highest one published
	due        time.Time // earliest release of the claim
	released   time.Time // release of the claim; zero: still held
}

// add keeps the due time of a claim that expired and was published again.
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

// due returns the purchases whose claims may be released. It removes those that were released and not claimed
// again, because they have an outcome.
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

// releaseAmbiguous releases the claims that are due. While older outcomes are unrecorded (Postgres or the
// queue was down), the purchase's own may be among them, and the claim is kept for up to postponeMax.
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
