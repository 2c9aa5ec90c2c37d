"""What share of the messages' time is hidden behind computation, measured.

A message is *under way* from when its sender hands it over until its link has carried it: first
all that the sender handed over before, then the latency and its bytes (:func:`account.arrivals`).
A rank is *held up* while it has nothing to run and would have something if all that was handed
over had arrived. So a wait counts once, however many messages end with it, and waiting for a sender
that still computes is not the links' fault. Summed over ranks, ::

    hidden share = 1 - held up / time in which something was under way to the rank

It is 1 where no rank ever waits for a message on its way, 0 where ranks do nothing else while there
are such, and below 0 where messages take longer than their links should.

``account`` is that sum, ``replay`` runs tables in a model of time (with links that take no time,
what all messages hidden would give), ``observed`` is the transport that takes times down, or that
hides nothing; ``cell`` measures one plan after another in one MPI job, ``results`` keeps
what was found, ``page`` shows it.
"""
