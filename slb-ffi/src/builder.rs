//! A configuration that is written field by field, in memory of the caller's.

use core::ffi::{c_char, c_int, c_void};
use core::fmt::{self, Write as _};
use core::mem::MaybeUninit;
use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;

use slb_core::PortId;
use slb_core::hash::{Distribution, Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, Xxh3};
use slb_core::mem::{Arena, Counter, Line, Mem, Memory};
use slb_core::spec::{
    Backend, BackendHealth, Echo, Frontend, FrontendPort, INSIDE, InboundNat, NatTarget, Outbound,
    Pool, PoolHealth, PortMode, Prefix, ProbeSource, Protocol, ProxyPorts, Rule, Scheduler,
    SourceRewrite, Spec, Terms, UdpChecksum, Underlay,
};
use slb_core::wire::vxlan::Vni;

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::handle::{Kind, allocation, deallocate};
use crate::memory::{array, array_of, exclusive, lines, put, shared, text};
use crate::spec::{
    condition, idle, protocol, slb_address, slb_backend, slb_frontend, slb_inbound_nat,
    slb_outbound, slb_pool, slb_rule, slb_underlay, state,
};

/// A configuration that is being written. Names given to it have to stay where they are until
/// `slb_builder_free`; everything else is copied.
#[derive(Debug)]
pub struct slb_builder {
    _opaque: (),
}

/// How much a builder has room for.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_capacity {
    /// VIPs.
    pub frontends: usize,
    /// Pools.
    pub pools: usize,
    /// Over all pools.
    pub backends: usize,
    /// Load-balancing rules.
    pub rules: usize,
    /// Inbound NAT rules and pools.
    pub inbound_nat: usize,
    /// Outbound rules.
    pub outbound: usize,
    /// Frontends of all outbound rules.
    pub outbound_frontends: usize,
    /// Muxes' addresses.
    pub muxes: usize,
    /// Of a proxy.
    pub frontend_ports: usize,
    /// Of a proxy.
    pub source_rewrites: usize,
    /// Sets of probe results: one for each pool and probe that rules go by.
    pub health: usize,
    /// Results of all sets: a set has one for each backend of its pool.
    pub health_results: usize,
    /// Prefixes that are inside: see `slb_builder_inside`.
    pub inside: usize,
}

/// Elements that were given, of as many as there is room for.
struct List<T: 'static> {
    places: Mem<'static, T>,
    len: usize,
}

impl<T: Copy + 'static> List<T> {
    fn take(memory: &mut impl Memory<'static>, capacity: usize, fill: T) -> Option<Self> {
        Some(Self {
            places: memory.take(capacity, fill)?,
            len: 0,
        })
    }

    fn all(&self) -> &[T] {
        self.places.get(..self.len).unwrap_or_default()
    }

    /// Adds one at a place, and says which that is.
    fn insert(&mut self, at: usize, element: T) -> Result<(), Error> {
        if self.len >= self.places.len() {
            return Err(SLB_ERROR_FULL);
        }
        let end = self.places.get_mut(at..=self.len).ok_or(SLB_ERROR_RANGE)?;
        end.rotate_right(1);
        *end.first_mut().ok_or(SLB_ERROR_RANGE)? = element;
        self.len += 1;
        Ok(())
    }

    fn push(&mut self, element: T) -> Result<usize, Error> {
        let place = self.len;
        self.insert(place, element)?;
        Ok(place)
    }
}

/// A pool, and how many backends it has.
#[derive(Clone, Copy)]
struct PoolEntry {
    name: &'static str,
    vni: Vni,
    table_size: u32,
    backends: usize,
}

// Its kind is first: it is looked at before anything else is known.
#[repr(C)]
pub(crate) struct Builder {
    kind: Kind,
    allocated: usize,
    parts: Parts,
}

struct Parts {
    hasher: Hasher,
    seed: u64,
    underlay: Underlay,
    frontends: List<Frontend<'static>>,
    pools: List<PoolEntry>,
    /// Pool by pool.
    backends: List<Backend<'static>>,
    /// The pool of each set of probe results.
    health: List<usize>,
    /// Set by set.
    health_results: List<BackendHealth>,
    rules: List<Rule<'static>>,
    inbound_nat: List<InboundNat<'static>>,
    /// Their frontends are ranges of `outbound_frontends`.
    outbound: List<(Outbound<'static>, usize, usize)>,
    outbound_frontends: List<usize>,
    muxes: List<IpAddr>,
    inside: List<Prefix>,
    /// The prefixes of `inside` stand for the usual ones.
    has_inside: bool,
    probe_source: ProbeSource,
    frontend_ports: List<FrontendPort>,
    source_rewrites: List<SourceRewrite>,
    now: slb_core::Instant,
    proxy: Option<(PortMode, PortId)>,
    scratch: Mem<'static, Line>,
}

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl Parts {
    fn take(capacity: &slb_capacity, memory: &mut impl Memory<'static>) -> Option<Self> {
        let frontend = Frontend {
            name: "",
            address: ANY,
            icmp_echo: Echo::Answer,
        };
        let pool = PoolEntry {
            name: "",
            vni: Vni::default(),
            table_size: 0,
            backends: 0,
        };
        let nat = InboundNat {
            name: "",
            frontend: 0,
            pool: 0,
            target: NatTarget::Backend {
                port: 0,
                backend: 0,
            },
            protocol: Protocol::Tcp,
            backend_port: 0,
            idle_timeout: Duration::ZERO,
            terms: Terms::default(),
        };
        let outbound = Outbound {
            name: "",
            frontends: &[],
            pool: 0,
            protocol: Protocol::All,
            allocated_outbound_ports: None,
            idle_timeout: Duration::ZERO,
            tcp_reset: false,
        };
        let rewrite = SourceRewrite {
            from: ANY,
            to: ANY,
            prefix_len: 0,
        };
        let prefix = Prefix {
            address: ANY,
            len: 0,
        };
        // What a spec's slices of slices need: pools, outbound rules, and probe results.
        let mut scratch = Counter::default();
        scratch.add::<Pool<'_>>(capacity.pools)?;
        scratch.add::<Outbound<'_>>(capacity.outbound)?;
        scratch.add::<PoolHealth<'_>>(capacity.health)?;
        Some(Self {
            hasher: Hasher::Xxh3(Xxh3::new(0)),
            seed: 0,
            underlay: Underlay::default(),
            frontends: List::take(memory, capacity.frontends, frontend)?,
            pools: List::take(memory, capacity.pools, pool)?,
            backends: List::take(memory, capacity.backends, Backend::default())?,
            health: List::take(memory, capacity.health, 0)?,
            health_results: List::take(memory, capacity.health_results, BackendHealth::default())?,
            rules: List::take(memory, capacity.rules, Rule::default())?,
            inbound_nat: List::take(memory, capacity.inbound_nat, nat)?,
            outbound: List::take(memory, capacity.outbound, (outbound, 0, 0))?,
            outbound_frontends: List::take(memory, capacity.outbound_frontends, 0)?,
            muxes: List::take(memory, capacity.muxes, ANY)?,
            inside: List::take(memory, capacity.inside, prefix)?,
            has_inside: false,
            probe_source: ProbeSource::default(),
            frontend_ports: List::take(memory, capacity.frontend_ports, FrontendPort::default())?,
            source_rewrites: List::take(memory, capacity.source_rewrites, rewrite)?,
            now: slb_core::Instant::ZERO,
            proxy: None,
            scratch: memory.take(scratch.lines(), Line::EMPTY)?,
        })
    }

    /// Where a pool's backends begin, and how many they are.
    fn backends_of(&self, pool: usize) -> Result<(usize, usize), Error> {
        let entry = self.pools.all().get(pool).ok_or(SLB_ERROR_RANGE)?;
        let before = self.pools.all().iter().take(pool);
        Ok((before.map(|pool| pool.backends).sum(), entry.backends))
    }

    /// Where a set of probe results begins, and how many they are.
    fn results_of(&self, health: usize) -> Result<(usize, usize), Error> {
        let all = self.health.all();
        let own = *all.get(health).ok_or(SLB_ERROR_RANGE)?;
        let count = |&pool: &usize| self.pools.all().get(pool).map_or(0, |pool| pool.backends);
        Ok((all.iter().take(health).map(count).sum(), count(&own)))
    }
}

impl Builder {
    const LINES: usize = size_of::<Self>().div_ceil(size_of::<Line>());

    /// # Safety
    /// Where it is neither NULL nor misaligned, it is a handle that nobody else uses.
    pub(crate) unsafe fn of<'a>(builder: *mut slb_builder) -> Result<&'a mut Self, Error> {
        // SAFETY: the caller promises it.
        let builder: &mut Self = unsafe { exclusive(builder.cast()) }?;
        if builder.kind == Kind::BUILDER {
            Ok(builder)
        } else {
            Err(SLB_ERROR_HANDLE)
        }
    }

    /// Lends the configuration as the dataplane's own.
    pub(crate) fn with_spec<T>(&mut self, f: impl FnOnce(&Spec<'_>) -> T) -> Result<T, Error> {
        let Parts {
            hasher,
            seed,
            underlay,
            frontends,
            pools,
            backends,
            health,
            health_results,
            rules,
            inbound_nat,
            outbound,
            outbound_frontends,
            muxes,
            inside,
            has_inside,
            probe_source,
            frontend_ports,
            source_rewrites,
            now,
            proxy,
            scratch,
        } = &mut self.parts;
        let mut arena = Arena::new(scratch);
        let none = Pool::default();
        let mut spec_pools = arena.take(pools.len, none).ok_or(SLB_ERROR_INTERNAL)?;
        let mut rest = backends.all();
        for (place, pool) in spec_pools.iter_mut().zip(pools.all()) {
            let (own, others) = rest
                .split_at_checked(pool.backends)
                .ok_or(SLB_ERROR_INTERNAL)?;
            rest = others;
            *place = Pool {
                name: pool.name,
                vni: pool.vni,
                table_size: pool.table_size,
                backends: own,
                ..Pool::default()
            };
        }
        let nothing = PoolHealth {
            pool: 0,
            backends: &[],
        };
        let mut spec_health = arena.take(health.len, nothing).ok_or(SLB_ERROR_INTERNAL)?;
        let mut rest = health_results.all();
        for (place, &pool) in spec_health.iter_mut().zip(health.all()) {
            let count = pools.all().get(pool).map_or(0, |pool| pool.backends);
            let (backends, others) = rest.split_at_checked(count).ok_or(SLB_ERROR_INTERNAL)?;
            rest = others;
            *place = PoolHealth { pool, backends };
        }
        let empty = outbound.all().first().map(|(rule, ..)| *rule);
        let mut spec_outbound = match empty {
            Some(rule) => arena.take(outbound.len, rule).ok_or(SLB_ERROR_INTERNAL)?,
            None => Mem::empty(),
        };
        for (place, (rule, first, end)) in spec_outbound.iter_mut().zip(outbound.all()) {
            let frontends = outbound_frontends.all().get(*first..*end);
            *place = Outbound {
                frontends: frontends.ok_or(SLB_ERROR_INTERNAL)?,
                ..*rule
            };
        }
        Ok(f(&Spec {
            hasher: hasher.clone(),
            hash_seed: *seed,
            underlay: *underlay,
            frontends: frontends.all(),
            rules: rules.all(),
            pools: &spec_pools,
            health: &spec_health,
            inbound_nat: inbound_nat.all(),
            outbound: &spec_outbound,
            inside: if *has_inside { inside.all() } else { INSIDE },
            muxes: muxes.all(),
            probe_source: *probe_source,
            proxy: proxy.map(|(mode, backend)| ProxyPorts {
                mode,
                frontends: frontend_ports.all(),
                backend,
                source_rewrites: source_rewrites.all(),
            }),
            now: *now,
        }))
    }
}

/// Runs `change` on a builder.
///
/// # Safety
/// As for [`Builder::of`].
unsafe fn change(
    builder: *mut slb_builder,
    change: impl FnOnce(&mut Parts) -> Result<usize, Error>,
) -> c_int {
    // SAFETY: the caller promises it.
    guard(|| change(&mut unsafe { Builder::of(builder) }?.parts))
}

/// Bytes of memory that a builder takes, or 0 where the argument is bad.
///
/// # Safety
/// It points to a capacity.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_size(capacity: *const slb_capacity) -> usize {
    let mut bytes = 0;
    guard(|| {
        // SAFETY: the caller promises it.
        bytes = builder_size(unsafe { shared(capacity) }?)?;
        Ok(0)
    });
    bytes
}

fn builder_size(capacity: &slb_capacity) -> Result<usize, Error> {
    let mut counter = Counter::default();
    Parts::take(capacity, &mut counter).ok_or(SLB_ERROR_RANGE)?;
    let lines = counter.lines().checked_add(Builder::LINES);
    let bytes = lines.and_then(|lines| lines.checked_mul(size_of::<Line>()));
    bytes.ok_or(SLB_ERROR_RANGE)
}

/// Makes a builder in memory.
///
/// # Safety
/// The memory is the caller's.
unsafe fn init(
    memory: *mut c_void,
    (length, allocated): (usize, usize),
    capacity: &slb_capacity,
    out: *mut *mut slb_builder,
) -> Result<usize, Error> {
    // SAFETY: the caller promises it.
    let memory = unsafe { lines(memory, length) }?;
    let (place, rest) = memory
        .split_at_mut_checked(Builder::LINES)
        .ok_or(SLB_ERROR_SHORT)?;
    let parts = Parts::take(capacity, &mut Arena::new(rest)).ok_or(SLB_ERROR_SHORT)?;
    let place: *mut MaybeUninit<Builder> = place.as_mut_ptr().cast();
    // SAFETY: `place` has room for a builder, aligned, and is nobody else's.
    let builder = unsafe { &mut *place }.write(Builder {
        kind: Kind::BUILDER,
        allocated,
        parts,
    });
    // SAFETY: the caller promises it.
    unsafe { put(out, core::ptr::from_mut(builder).cast()) }?;
    Ok(0)
}

/// Makes a builder in `memory`, aligned to 64 bytes and of `length` bytes, of which
/// `slb_builder_size` says how many are needed. The memory is the builder's until
/// `slb_builder_free`.
///
/// # Safety
/// The memory is the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_init(
    memory: *mut c_void,
    length: usize,
    capacity: *const slb_capacity,
    out: *mut *mut slb_builder,
) -> c_int {
    guard(|| {
        // SAFETY: the caller promises it.
        unsafe {
            put(out, core::ptr::null_mut())?;
            init(memory, (length, 0), shared(capacity)?, out)
        }
    })
}

/// Makes a builder in memory of the library's own. Otherwise as `slb_builder_init`.
///
/// # Safety
/// The pointers point to what they say.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_new(
    capacity: *const slb_capacity,
    out: *mut *mut slb_builder,
) -> c_int {
    guard(|| {
        // SAFETY: the caller promises it.
        unsafe {
            put(out, core::ptr::null_mut())?;
            let capacity = shared(capacity)?;
            let bytes = builder_size(capacity)?;
            let memory = crate::handle::allocate(bytes)?;
            init(memory, (bytes, bytes), capacity, out).inspect_err(|_| {
                deallocate(memory, allocation(bytes));
            })
        }
    })
}

/// Ends a builder. Its memory is the caller's again, or given back. Snapshots that were made with
/// it stay. NULL is no error.
///
/// # Safety
/// It is one, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_free(builder: *mut slb_builder) -> c_int {
    guard(|| {
        if builder.is_null() {
            return Ok(0);
        }
        // SAFETY: the caller promises it.
        let handle = unsafe { Builder::of(builder) }?;
        let allocated = handle.allocated;
        handle.kind = Kind::FREED;
        // SAFETY: nobody uses it any more; it holds nothing but memory that is not its own.
        unsafe { deallocate(builder.cast(), allocation(allocated)) };
        Ok(0)
    })
}

/// Text that is cut to the room there is, at the end of a character.
struct Cut<'a> {
    room: &'a mut [u8],
    len: usize,
    is_full: bool,
}

impl fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte is for the zero.
        let left = self.room.len().saturating_sub(self.len + 1);
        let taken = text.floor_char_boundary(left);
        let end = self.len + taken;
        let place = self.room.get_mut(self.len..end);
        if let (Some(place), Some(bytes), false) =
            (place, text.as_bytes().get(..taken), self.is_full)
        {
            place.copy_from_slice(bytes);
            self.len = end;
        }
        self.is_full |= taken < text.len();
        Ok(())
    }
}

/// Writes every fault of the configuration into `text`, one a line and with the names of its items,
/// cut to `length` bytes with the zero that ends it; `text` may be NULL. Gives the number of faults: 0
/// where a snapshot can be made.
///
/// # Safety
/// It is a builder, and `text` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_faults(
    builder: *mut slb_builder,
    text: *mut c_char,
    length: usize,
) -> c_int {
    guard(|| {
        // SAFETY: the caller promises it.
        let builder = unsafe { Builder::of(builder) }?;
        let room = if text.is_null() {
            &mut []
        } else {
            // SAFETY: the caller promises it.
            unsafe { array::<u8>(text.cast(), length) }?
        };
        let mut cut = Cut {
            room,
            len: 0,
            is_full: false,
        };
        let count = builder.with_spec(|spec| {
            let told = spec.faults().map(|fault| {
                let _ = writeln!(cut, "{}", fault.named(spec));
            });
            told.count()
        })?;
        let end = cut.len;
        if let Some(end) = cut.room.get_mut(end) {
            *end = 0;
        }
        Ok(count)
    })
}

/// How flows are hashed, the same on every node. 0: XXH3, whose seed is `seed`; 1: SipHash-1-3,
/// whose `key` has 16 bytes; 2: Toeplitz, whose `key` has 40, or is NULL for Microsoft's. `seed` is
/// also that of Maglev's permutations.
///
/// # Safety
/// It is a builder, and `key` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_hash(
    builder: *mut slb_builder,
    hash: u8,
    seed: u64,
    key: *const u8,
    length: usize,
) -> c_int {
    let read = |parts: &mut Parts| {
        let key = if key.is_null() {
            &[]
        } else {
            // SAFETY: the caller promises it.
            unsafe { array_of(key, length) }?
        };
        parts.hasher = match hash {
            0 => Hasher::Xxh3(Xxh3::new(seed)),
            1 => Hasher::SipHash13(SipHash13::new(key.try_into().or(Err(SLB_ERROR_RANGE))?)),
            2 if key.is_empty() => Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY)),
            2 => {
                let key: &[u8; 40] = key.try_into().or(Err(SLB_ERROR_RANGE))?;
                Hasher::Toeplitz(Toeplitz::new(key))
            }
            _ => return Err(SLB_ERROR_RANGE),
        };
        parts.seed = seed;
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, read) }
}

/// This node's place on the fabric.
///
/// # Safety
/// It is a builder, and `underlay` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_underlay(
    builder: *mut slb_builder,
    underlay: *const slb_underlay,
) -> c_int {
    let set = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let given = unsafe { shared(underlay) }?;
        let usual = Underlay::default();
        let ipv4 = match given.ipv4.optional()? {
            Some(IpAddr::V6(_)) => return Err(SLB_ERROR_RANGE),
            Some(IpAddr::V4(address)) => Some(address),
            None => None,
        };
        let ipv6 = match given.ipv6.optional()? {
            Some(IpAddr::V4(_)) => return Err(SLB_ERROR_RANGE),
            Some(IpAddr::V6(address)) => Some(address),
            None => None,
        };
        parts.underlay = Underlay {
            ipv4,
            ipv6,
            mac: given.mac.optional().unwrap_or(usual.mac),
            next_hop: given.next_hop.optional().unwrap_or(usual.next_hop),
            mtu: if given.mtu == 0 { usual.mtu } else { given.mtu },
            hop_limit: match given.hop_limit {
                0 => usual.hop_limit,
                hop_limit => hop_limit,
            },
            udp_checksum: match given.udp_checksum {
                0 => UdpChecksum::Auto,
                1 => UdpChecksum::Zero,
                2 => UdpChecksum::Computed,
                _ => return Err(SLB_ERROR_RANGE),
            },
            port: PortId(given.port),
        };
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Adds a VIP. Gives its place.
///
/// # Safety
/// It is a builder, and `frontend` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_frontend(
    builder: *mut slb_builder,
    frontend: *const slb_frontend,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let (given, name) = unsafe { (shared(frontend)?, text((*frontend).name)?) };
        parts.frontends.push(Frontend {
            name,
            address: given.address.required()?,
            icmp_echo: match given.icmp_echo {
                0 => Echo::Answer,
                1 => Echo::Forward,
                2 => Echo::Ignore,
                _ => return Err(SLB_ERROR_RANGE),
            },
        })
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Adds a pool. Gives its place.
///
/// # Safety
/// It is a builder, and `pool` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_pool(
    builder: *mut slb_builder,
    pool: *const slb_pool,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let (given, name) = unsafe { (shared(pool)?, text((*pool).name)?) };
        parts.pools.push(PoolEntry {
            name,
            vni: Vni::new(given.vni).ok_or(SLB_ERROR_RANGE)?,
            table_size: match given.table_size {
                0 => Pool::default().table_size,
                size => size,
            },
            backends: 0,
        })
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Adds a backend to a pool. Gives its place there.
///
/// # Safety
/// It is a builder, and `backend` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_backend(
    builder: *mut slb_builder,
    pool: usize,
    backend: *const slb_backend,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let (given, name) = unsafe { (shared(backend)?, text((*backend).name)?) };
        let port = match u16::try_from(given.port) {
            Ok(port) => Some(PortId(port)),
            Err(_) if given.port < 0 => None,
            Err(_) => return Err(SLB_ERROR_RANGE),
        };
        let added = Backend {
            name,
            address: given.address.required()?,
            host: given.host.optional()?.unwrap_or(ANY),
            mac: given.mac.optional(),
            next_hop: given.next_hop.optional(),
            weight: given.weight,
            state: state(given.state)?,
            condition: condition(u8::from(given.unhealthy == 0)),
            seat: None,
            instance: u32::try_from(given.instance).ok(),
            port,
            backend_port: (given.backend_port != 0).then_some(given.backend_port),
        };
        let (first, count) = parts.backends_of(pool)?;
        let of_pool = |&set: &usize| set == pool;
        let sets = parts.health.all().iter().copied().filter(of_pool).count();
        let room = parts.health_results.places.len() - parts.health_results.len;
        if parts.backends.len >= parts.backends.places.len() || sets > room {
            return Err(SLB_ERROR_FULL);
        }
        // From the last set on: what is inserted moves none of those before.
        for set in (0..parts.health.len).rev() {
            if parts.health.all().get(set).is_some_and(of_pool) {
                let (first, count) = parts.results_of(set)?;
                let healthy = BackendHealth::default();
                parts.health_results.insert(first + count, healthy)?;
            }
        }
        parts.backends.insert(first + count, added)?;
        if let Some(pool) = parts.pools.places.get_mut(pool) {
            pool.backends += 1;
        }
        Ok(count)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Changes a backend's weight and state for all rules, such as to drain it. It takes effect with the
/// next snapshot. For what a probe said, see `slb_builder_set_health`.
///
/// # Safety
/// It is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_set_backend(
    builder: *mut slb_builder,
    pool: usize,
    backend: usize,
    weight: u32,
    backend_state: u8,
) -> c_int {
    let set = |parts: &mut Parts| {
        let (first, count) = parts.backends_of(pool)?;
        let known = state(backend_state)?;
        let place = parts.backends.places.get_mut(first..first + count);
        let place = place.and_then(|all| all.get_mut(backend));
        let place = place.ok_or(SLB_ERROR_RANGE)?;
        (place.weight, place.state) = (weight, known);
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Gives a backend a seat: it gets the slots of the pool's Maglev table that follow from the seat, in the
/// place of those that follow from its name. A backend with the seat of the one that it replaces gets that
/// one's slots, and no other slot moves. Of the backends with one seat all but one have weight 0 or drain.
/// NULL: its name again.
///
/// # Safety
/// It is a builder, and `seat` is NULL, or a string that stays as long as the builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_seat(
    builder: *mut slb_builder,
    pool: usize,
    backend: usize,
    seat: *const c_char,
) -> c_int {
    let set = |parts: &mut Parts| {
        let seat = match seat.is_null() {
            true => None,
            // SAFETY: the caller promises it.
            false => Some(unsafe { text(seat) }?),
        };
        let (first, count) = parts.backends_of(pool)?;
        let place = parts.backends.places.get_mut(first..first + count);
        let place = place.and_then(|all| all.get_mut(backend));
        place.ok_or(SLB_ERROR_RANGE)?.seat = seat;
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Says when the next snapshot is made, in nanoseconds by any clock that goes on from snapshot to snapshot.
/// By it a host agent knows how long a backend had its slots of the Maglev table, and passes packets on to
/// the former owners that have the most connections. Without a call each snapshot counts the same.
///
/// # Safety
/// It is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_now(builder: *mut slb_builder, now: u64) -> c_int {
    let set = |parts: &mut Parts| {
        parts.now = slb_core::Instant::from_nanos(now);
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Says what was observed of a backend for all rules: 0 in `healthy`: it fails, and gets no new flows. It
/// takes effect with the next snapshot. For what a probe found, see `slb_builder_set_health`.
///
/// # Safety
/// It is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_set_condition(
    builder: *mut slb_builder,
    pool: usize,
    backend: usize,
    healthy: u8,
) -> c_int {
    let set = |parts: &mut Parts| {
        let (first, count) = parts.backends_of(pool)?;
        let place = parts.backends.places.get_mut(first..first + count);
        let place = place.and_then(|all| all.get_mut(backend));
        place.ok_or(SLB_ERROR_RANGE)?.condition = condition(healthy);
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Adds a set of probe results for the backends of a pool, all of them healthy: one set for each
/// probe that rules of the pool go by. Gives its place.
///
/// # Safety
/// It is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_health(builder: *mut slb_builder, pool: usize) -> c_int {
    let add = |parts: &mut Parts| {
        let (_, count) = parts.backends_of(pool)?;
        let results = &mut parts.health_results;
        if parts.health.len >= parts.health.places.len()
            || results.places.len() - results.len < count
        {
            return Err(SLB_ERROR_FULL);
        }
        for _ in 0..count {
            results.push(BackendHealth::default())?;
        }
        parts.health.push(pool)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Has a rule go by a set of probe results of its pool. Without one, a rule goes by the state of
/// backends alone.
///
/// # Safety
/// It is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_rule_health(
    builder: *mut slb_builder,
    rule: usize,
    health: usize,
) -> c_int {
    let set = |parts: &mut Parts| {
        let pool = *parts.health.all().get(health).ok_or(SLB_ERROR_RANGE)?;
        let len = parts.rules.len;
        let rules = parts.rules.places.get_mut(..len);
        let rule = rules.and_then(|rules| rules.get_mut(rule));
        let rule = rule.filter(|rule| rule.pool == pool);
        rule.ok_or(SLB_ERROR_RANGE)?.health = Some(health);
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Says what a probe found of a backend, given by its place in the pool: 0 in `healthy`: its
/// probe fails, and the rules that go by the set give it no new flows. `weight` is the backend's
/// for these rules; negative: its own. It takes effect with the next snapshot.
///
/// # Safety
/// It is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_set_health(
    builder: *mut slb_builder,
    health: usize,
    backend: usize,
    healthy: u8,
    weight: i64,
) -> c_int {
    let set = |parts: &mut Parts| {
        let (first, count) = parts.results_of(health)?;
        let weight = match weight {
            ..0 => None,
            weight => Some(u32::try_from(weight).or(Err(SLB_ERROR_RANGE))?),
        };
        let place = parts.health_results.places.get_mut(first..first + count);
        let place = place.and_then(|all| all.get_mut(backend));
        *place.ok_or(SLB_ERROR_RANGE)? = BackendHealth {
            condition: condition(healthy),
            weight,
        };
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Adds a load-balancing rule. Gives its place.
///
/// # Safety
/// It is a builder, and `rule` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_rule(
    builder: *mut slb_builder,
    rule: *const slb_rule,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let (given, name) = unsafe { (shared(rule)?, text((*rule).name)?) };
        parts.rules.push(Rule {
            name,
            frontend: given.frontend,
            pool: given.pool,
            health: None,
            protocol: protocol(given.protocol)?,
            frontend_port: given.frontend_port,
            backend_port: given.backend_port,
            distribution: match given.distribution {
                0 => Distribution::FiveTuple,
                1 => Distribution::SourceIp,
                2 => Distribution::SourceIpProtocol,
                _ => return Err(SLB_ERROR_RANGE),
            },
            scheduler: match given.scheduler {
                0 => Scheduler::Maglev,
                1 => Scheduler::LeastConnections,
                _ => return Err(SLB_ERROR_RANGE),
            },
            idle_timeout: idle(given.terms.idle_timeout)?,
            terms: given.terms.terms()?,
        })
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Adds an inbound NAT rule or pool. Gives its place.
///
/// # Safety
/// It is a builder, and `nat` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_inbound_nat(
    builder: *mut slb_builder,
    nat: *const slb_inbound_nat,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let (given, name) = unsafe { (shared(nat)?, text((*nat).name)?) };
        let target = match usize::try_from(given.backend) {
            Ok(backend) => NatTarget::Backend {
                port: given.first_port,
                backend,
            },
            Err(_) => NatTarget::Pool {
                first: given.first_port,
                last: given.last_port,
            },
        };
        parts.inbound_nat.push(InboundNat {
            name,
            frontend: given.frontend,
            pool: given.pool,
            target,
            protocol: protocol(given.protocol)?,
            backend_port: given.backend_port,
            idle_timeout: idle(given.terms.idle_timeout)?,
            terms: given.terms.terms()?,
        })
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Adds an outbound rule. Gives its place.
///
/// # Safety
/// It is a builder, and `outbound` points to one with as many frontends as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_outbound(
    builder: *mut slb_builder,
    outbound: *const slb_outbound,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let (given, name, frontends) = unsafe {
            let given = shared(outbound)?;
            let frontends = array_of(given.frontends, given.frontend_count)?;
            (given, text(given.name)?, frontends)
        };
        let rule = Outbound {
            name,
            frontends: &[],
            pool: given.pool,
            protocol: protocol(given.protocol)?,
            allocated_outbound_ports: (given.allocated_outbound_ports != 0)
                .then_some(given.allocated_outbound_ports),
            idle_timeout: idle(given.idle_timeout)?,
            tcp_reset: given.tcp_reset != 0,
        };
        let first = parts.outbound_frontends.len;
        let room = parts.outbound_frontends.places.len() - first;
        if parts.outbound.len >= parts.outbound.places.len() || frontends.len() > room {
            return Err(SLB_ERROR_FULL);
        }
        for &frontend in frontends {
            parts.outbound_frontends.push(frontend)?;
        }
        parts.outbound.push((rule, first, first + frontends.len()))
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Adds a mux's underlay address: where a host sends what a rule returns through it, and takes
/// packets from. Gives its place.
///
/// # Safety
/// It is a builder, and `address` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_mux(
    builder: *mut slb_builder,
    address: *const slb_address,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let address = unsafe { shared(address) }?.required()?;
        parts.muxes.push(address)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Adds a prefix of `prefix_length` bits to those that are inside: vms reach such addresses, and answer
/// them, under their own addresses, and outbound rules translate only what goes elsewhere. Without a
/// call, private, shared, link-local and unique local addresses are inside, and 168.63.129.16. The first
/// call takes these away; with NULL it adds none, so that nothing is inside but the vms' networks. Gives
/// the number of prefixes before the call.
///
/// # Safety
/// It is a builder, and `address` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_inside(
    builder: *mut slb_builder,
    address: *const slb_address,
    prefix_length: u8,
) -> c_int {
    let add = |parts: &mut Parts| {
        let before = parts.inside.len;
        if !address.is_null() {
            // SAFETY: the caller promises it.
            let address = unsafe { shared(address) }?.required()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            if prefix_length > most {
                return Err(SLB_ERROR_RANGE);
            }
            parts.inside.push(Prefix {
                address,
                len: prefix_length,
            })?;
        }
        parts.has_inside = true;
        Ok(before)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// The address, one of each family, that the caller's probes of a host's vms come from. What vms
/// send to it is passed, whatever outbound rules say.
///
/// # Safety
/// It is a builder, and `address` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_probe_source(
    builder: *mut slb_builder,
    address: *const slb_address,
) -> c_int {
    let set = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        match unsafe { shared(address) }?.required()? {
            IpAddr::V4(address) => parts.probe_source.ipv4 = Some(address),
            IpAddr::V6(address) => parts.probe_source.ipv6 = Some(address),
        }
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Makes it the configuration of a proxy, whose backends are at `backend_port`. `multi`: 0: one
/// frontend port; else any number, each with an address.
///
/// # Safety
/// It is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_proxy(
    builder: *mut slb_builder,
    multi: u8,
    backend_port: u16,
) -> c_int {
    let set = |parts: &mut Parts| {
        let mode = match multi {
            0 => PortMode::Single,
            _ => PortMode::Multi,
        };
        parts.proxy = Some((mode, PortId(backend_port)));
        Ok(0)
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, set) }
}

/// Adds a frontend port of a proxy. `address` is the IPv4 address of who is there, or NULL. Gives
/// its place.
///
/// # Safety
/// It is a builder, and `address` points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_frontend_port(
    builder: *mut slb_builder,
    port: u16,
    address: *const slb_address,
) -> c_int {
    let add = |parts: &mut Parts| {
        let address = if address.is_null() {
            None
        } else {
            // SAFETY: the caller promises it.
            match unsafe { shared(address) }?.required()? {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => return Err(SLB_ERROR_RANGE),
            }
        };
        parts.frontend_ports.push(FrontendPort {
            port: PortId(port),
            address,
        })
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}

/// Adds a source rewrite of a proxy: clients of the range of `prefix_length` that `from` begins are
/// seen as those that `to` begins. Gives its place.
///
/// # Safety
/// It is a builder, and both point to addresses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_source_rewrite(
    builder: *mut slb_builder,
    from: *const slb_address,
    to: *const slb_address,
    prefix_length: u8,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: the caller promises it.
        let (from, to) = unsafe { (shared(from)?, shared(to)?) };
        parts.source_rewrites.push(SourceRewrite {
            from: from.required()?,
            to: to.required()?,
            prefix_len: prefix_length,
        })
    };
    // SAFETY: the caller promises it.
    unsafe { change(builder, add) }
}
