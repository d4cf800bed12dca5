package purchase

import "time"

// Person is what the ledger holds of one customer, by the ids that it keeps.
type Person struct {
	ProfileID string
	Held      []Holding
	Until     time.Time // a relay may still be handing one of them to the queue; zero: none is
}

// Holding is one of a person's purchases.
type Holding struct {
	ID       string
	Livemode bool
	Sent     bool // TikTok has accepted it
}

// Sent lists the ids under which TikTok holds an event of this person.
func (p *Person) Sent() (ids []string) {
	for _, h := range p.Held {
		if h.Sent {
			ids = append(ids, h.ID)
		}
	}
	return ids
}
