package relay

import (
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// Enqueue publishes a purchase that was claimed in the transaction that recorded it.
func (r *Relay) Enqueue(p purchase.Purchase, recorded purchase.Recorded) {
	r.Offer(message.Claim{
		ID: p.ID, Livemode: p.Livemode, Generation: 1, FirstPublished: recorded.Claimed, Envelope: recorded.Message,
	})
}
