package purchase

// Sent is what the event of a delivered purchase carried, as the worker that sent it reports. It may differ
// from the envelope: a currency that TikTok does not list costs the value, and a setting of the worker
// replaces a missing page.
type Sent struct {
	Keys  int16  `json:"keys"`            // mask of its match keys, see MatchKeys.Mask
	Minor *int64 `json:"minor,omitempty"` // its value in the currency's smallest unit; nil: none
	Page  string `json:"page,omitempty"`  // the worker's default page; "": the purchase's own, or none
}

// Only returns the keys without those that Mask counts and that mask lacks.
func (k MatchKeys) Only(mask int16) MatchKeys {
	for bit, fields := range [MatchKeyKinds][]*string{
		{&k.Email}, {&k.Phone}, {&k.TTCLID}, {&k.TTP}, {&k.IP}, {&k.UserAgent}, {&k.PageURL}, {&k.FirstName}, {&k.Zip, &k.City},
	} {
		for _, field := range fields {
			if mask>>bit&1 == 0 {
				*field = ""
			}
		}
	}
	return k
}
