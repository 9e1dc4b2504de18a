//! Configurations that are set field by field, in the caller's memory.

mod backends;
mod fault;
mod items;
mod networks;

pub use backends::*;
use fault::Message;
pub(crate) use fault::{Cut, Fault};
pub use items::*;
pub use networks::*;

use core::ffi::{c_char, c_int, c_void};
use core::fmt::Write as _;
use core::mem::MaybeUninit;
use core::net::{IpAddr, Ipv4Addr};

use slb_core::PortId;
use slb_core::hash::{Hasher, Xxh3};
use slb_core::mem::{Arena, Counter, Line, Mem, Memory};
use slb_core::spec::{
    Backend, BackendHealth, Frontend, FrontendPort, INSIDE, InboundNat, Network, NetworkVm,
    Outbound, Pool, PoolHealth, PortMode, Prefix, ProbeSource, ProxyPorts, Rule, SourceRewrite,
    Spec, Underlay,
};
use slb_core::wire::vxlan::Vni;

use crate::error::slb_error::*;
use crate::error::{Error, guard, message};
use crate::handle::{Kind, allocation, deallocate};
use crate::memory::{array, exclusive, lines, put, shared, text};

/// A configuration that is built field by field. Names passed to it have to stay valid until
/// `slb_builder_free`; everything else is copied.
#[derive(Debug)]
pub struct slb_builder {
    _opaque: (),
}

/// Capacity of a builder: the number of items of each kind.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_capacity {
    /// Number of VIPs.
    pub frontends: usize,
    /// Number of pools.
    pub pools: usize,
    /// Number of backends over all pools.
    pub backends: usize,
    /// Number of load-balancing rules.
    pub rules: usize,
    /// Number of inbound NAT rules and pools.
    pub inbound_nat: usize,
    /// Number of outbound rules.
    pub outbound: usize,
    /// Number of frontends of all outbound rules.
    pub outbound_frontends: usize,
    /// Number of muxes' addresses.
    pub muxes: usize,
    /// Number of frontend ports of a proxy.
    pub frontend_ports: usize,
    /// Number of source rewrites of a proxy.
    pub source_rewrites: usize,
    /// Number of sets of probe results: one for each pair of pool and probe that rules use.
    pub health: usize,
    /// Number of results in all sets: a set has one for each backend of its pool.
    pub health_results: usize,
    /// Number of inside prefixes; see `slb_builder_inside`.
    pub inside: usize,
    /// Number of networks.
    pub networks: usize,
    /// Number of address spaces of all networks.
    pub network_prefixes: usize,
    /// Number of gateways of all networks.
    pub network_gateways: usize,
    /// Number of vms that are no backends.
    pub vms: usize,
    /// Number of addresses of all vms that are no backends.
    pub vm_addresses: usize,
}

/// The elements so far, with room for more.
struct List<T: 'static> {
    places: Mem<'static, T>,
    len: usize,
    /// The field of `slb_capacity` with the list's capacity.
    field: &'static str,
}

impl<T: Copy + 'static> List<T> {
    fn take(
        memory: &mut impl Memory<'static>,
        (field, capacity): (&'static str, usize),
        fill: T,
    ) -> Option<Self> {
        Some(Self {
            places: memory.take(capacity, fill)?,
            len: 0,
            field,
        })
    }

    /// Returns the number of elements that still fit.
    fn room(&self) -> usize {
        self.places.len() - self.len
    }

    fn full(&self) -> Fault {
        Fault::full(self.field, self.places.len())
    }

    fn all(&self) -> &[T] {
        self.places.get(..self.len).unwrap_or_default()
    }

    /// Inserts an element at an index, and returns the index.
    fn insert(&mut self, at: usize, element: T) -> Result<(), Fault> {
        if self.room() == 0 {
            return Err(self.full());
        }
        let end = self.places.get_mut(at..=self.len).ok_or(SLB_ERROR_RANGE)?;
        end.rotate_right(1);
        *end.first_mut().ok_or(SLB_ERROR_RANGE)? = element;
        self.len += 1;
        Ok(())
    }

    fn push(&mut self, element: T) -> Result<usize, Fault> {
        let place = self.len;
        self.insert(place, element)?;
        Ok(place)
    }
}

/// A pool, and the number of its backends.
#[derive(Clone, Copy)]
struct PoolEntry {
    name: &'static str,
    vni: Vni,
    table_size: u32,
    backends: usize,
}

// The kind is the first field: it is checked before the others may be read.
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
    /// The backends, pool by pool.
    backends: List<Backend<'static>>,
    /// The pool of each set of probe results.
    health: List<usize>,
    /// The probe results, set by set.
    health_results: List<BackendHealth>,
    rules: List<Rule<'static>>,
    inbound_nat: List<InboundNat<'static>>,
    /// Outbound rules, whose frontends are ranges of `outbound_frontends`.
    outbound: List<(Outbound<'static>, usize, usize)>,
    outbound_frontends: List<usize>,
    muxes: List<IpAddr>,
    inside: List<Prefix>,
    /// True if the prefixes of `inside` replace the default ones.
    has_inside: bool,
    /// Networks, whose address spaces and gateways are ranges of the next two.
    networks: List<(Network<'static>, Range, Range)>,
    network_prefixes: List<Prefix>,
    network_gateways: List<IpAddr>,
    /// Private frontends with their networks, in the order of the networks.
    private: List<(usize, usize)>,
    /// Indexes of private frontends.
    private_frontends: List<usize>,
    /// Vms, whose addresses are ranges of `vm_addresses`.
    vms: List<(NetworkVm<'static>, usize, usize)>,
    vm_addresses: List<IpAddr>,
    probe_source: ProbeSource,
    frontend_ports: List<FrontendPort>,
    source_rewrites: List<SourceRewrite>,
    now: slb_core::Instant,
    proxy: Option<(PortMode, PortId)>,
    scratch: Mem<'static, Line>,
    /// The name of the item in the current call, once it has been read.
    name: &'static str,
    message: Message,
}

/// The beginning and the end of a range.
type Range = (usize, usize);

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl Parts {
    fn take(capacity: &slb_capacity, memory: &mut impl Memory<'static>) -> Option<Self> {
        let pool = PoolEntry {
            name: "",
            vni: Vni::default(),
            table_size: 0,
            backends: 0,
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
        // Scratch memory for a spec's slices of slices: pools, outbound rules, and probe results.
        let mut scratch = Counter::default();
        scratch.add::<Pool<'_>>(capacity.pools)?;
        scratch.add::<Outbound<'_>>(capacity.outbound)?;
        scratch.add::<PoolHealth<'_>>(capacity.health)?;
        scratch.add::<Network<'_>>(capacity.networks)?;
        scratch.add::<NetworkVm<'_>>(capacity.vms)?;
        Some(Self {
            hasher: Hasher::Xxh3(Xxh3::new(0)),
            seed: 0,
            underlay: Underlay::default(),
            frontends: List::take(
                memory,
                ("frontends", capacity.frontends),
                Frontend::default(),
            )?,
            pools: List::take(memory, ("pools", capacity.pools), pool)?,
            backends: List::take(memory, ("backends", capacity.backends), Backend::default())?,
            health: List::take(memory, ("health", capacity.health), 0)?,
            health_results: List::take(
                memory,
                ("health_results", capacity.health_results),
                BackendHealth::default(),
            )?,
            rules: List::take(memory, ("rules", capacity.rules), Rule::default())?,
            inbound_nat: List::take(
                memory,
                ("inbound_nat", capacity.inbound_nat),
                InboundNat::default(),
            )?,
            outbound: List::take(
                memory,
                ("outbound", capacity.outbound),
                (Outbound::default(), 0, 0),
            )?,
            outbound_frontends: List::take(
                memory,
                ("outbound_frontends", capacity.outbound_frontends),
                0,
            )?,
            muxes: List::take(memory, ("muxes", capacity.muxes), ANY)?,
            inside: List::take(memory, ("inside", capacity.inside), prefix)?,
            has_inside: false,
            networks: List::take(
                memory,
                ("networks", capacity.networks),
                (Network::default(), (0, 0), (0, 0)),
            )?,
            network_prefixes: List::take(
                memory,
                ("network_prefixes", capacity.network_prefixes),
                prefix,
            )?,
            network_gateways: List::take(
                memory,
                ("network_gateways", capacity.network_gateways),
                ANY,
            )?,
            private: List::take(memory, ("frontends", capacity.frontends), (0, 0))?,
            private_frontends: List::take(memory, ("frontends", capacity.frontends), 0)?,
            vms: List::take(memory, ("vms", capacity.vms), (NetworkVm::default(), 0, 0))?,
            vm_addresses: List::take(memory, ("vm_addresses", capacity.vm_addresses), ANY)?,
            probe_source: ProbeSource::default(),
            frontend_ports: List::take(
                memory,
                ("frontend_ports", capacity.frontend_ports),
                FrontendPort::default(),
            )?,
            source_rewrites: List::take(
                memory,
                ("source_rewrites", capacity.source_rewrites),
                rewrite,
            )?,
            now: slb_core::Instant::ZERO,
            proxy: None,
            scratch: memory.take(scratch.lines(), Line::EMPTY)?,
            name: "",
            message: Message::EMPTY,
        })
    }

    /// Returns the index of a pool's first backend, and their number.
    fn backends_of(&self, pool: usize) -> Result<(usize, usize), Fault> {
        let all = self.pools.all();
        let entry = all.get(pool);
        let entry = entry.ok_or(Fault::index("pool", pool, all.len()))?;
        let before = all.iter().take(pool);
        Ok((before.map(|pool| pool.backends).sum(), entry.backends))
    }

    /// A backend of a pool.
    fn backend(&mut self, pool: usize, backend: usize) -> Result<&mut Backend<'static>, Fault> {
        let (first, count) = self.backends_of(pool)?;
        let all = self.backends.places.get_mut(first..first + count);
        let found = all.and_then(|all| all.get_mut(backend));
        found.ok_or(Fault::index("backend", backend, count))
    }

    /// Returns the index of the first result of a set of probe results, and their number.
    fn results_of(&self, health: usize) -> Result<(usize, usize), Fault> {
        let all = self.health.all();
        let own = all.get(health);
        let own = *own.ok_or(Fault::index("health", health, all.len()))?;
        let count = |&pool: &usize| self.pools.all().get(pool).map_or(0, |pool| pool.backends);
        Ok((all.iter().take(health).map(count).sum(), count(&own)))
    }

    /// Reads the name of the item in the current call.
    ///
    /// # Safety
    /// `name` is NULL, or a string that ends with a zero and outlives the builder.
    unsafe fn named(&mut self, name: *const c_char) -> Result<&'static str, Fault> {
        // SAFETY: guaranteed by the caller.
        self.name = unsafe { string(name) }.map_err(|fault| fault.of("name"))?;
        Ok(self.name)
    }
}

/// Reads a caller's string that outlives the builder.
///
/// # Safety
/// `pointer` is NULL, or a string that ends with a zero and outlives the builder.
unsafe fn string(pointer: *const c_char) -> Result<&'static str, Fault> {
    // SAFETY: guaranteed by the caller.
    unsafe { text(pointer) }.map_err(|error| match error {
        SLB_ERROR_RANGE => Fault::unfit("", "UTF-8"),
        error => error.into(),
    })
}

impl Builder {
    const LINES: usize = size_of::<Self>().div_ceil(size_of::<Line>());

    /// # Safety
    /// `builder` is NULL, misaligned, or a handle that is not used elsewhere.
    pub(crate) unsafe fn of<'a>(builder: *mut slb_builder) -> Result<&'a mut Self, Error> {
        // SAFETY: guaranteed by the caller.
        let builder: &mut Self = unsafe { exclusive(builder.cast()) }?;
        if builder.kind == Kind::BUILDER {
            Ok(builder)
        } else {
            Err(SLB_ERROR_HANDLE)
        }
    }

    /// Lends the configuration as the dataplane's `Spec`.
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
            networks,
            network_prefixes,
            network_gateways,
            private,
            private_frontends,
            vms,
            vm_addresses,
            probe_source,
            frontend_ports,
            source_rewrites,
            now,
            proxy,
            scratch,
            ..
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
        let network = Network::default();
        let spec_networks = arena.take(networks.len, network);
        let mut spec_networks = spec_networks.ok_or(SLB_ERROR_INTERNAL)?;
        let all = networks.all().iter().enumerate();
        for (place, (index, (network, prefixes, gateways))) in spec_networks.iter_mut().zip(all) {
            let first = private.all().partition_point(|(of, _)| *of < index);
            let end = private.all().partition_point(|(of, _)| *of <= index);
            let frontends = private_frontends.all().get(first..end);
            let prefixes = network_prefixes.all().get(prefixes.0..prefixes.1);
            let gateways = network_gateways.all().get(gateways.0..gateways.1);
            *place = Network {
                prefixes: prefixes.ok_or(SLB_ERROR_INTERNAL)?,
                gateways: gateways.ok_or(SLB_ERROR_INTERNAL)?,
                frontends: frontends.ok_or(SLB_ERROR_INTERNAL)?,
                ..*network
            };
        }
        let spec_vms = arena.take(vms.len, NetworkVm::default());
        let mut spec_vms = spec_vms.ok_or(SLB_ERROR_INTERNAL)?;
        for (place, (vm, first, end)) in spec_vms.iter_mut().zip(vms.all()) {
            let addresses = vm_addresses.all().get(*first..*end);
            *place = NetworkVm {
                addresses: addresses.ok_or(SLB_ERROR_INTERNAL)?,
                ..*vm
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
            networks: &spec_networks,
            vms: &spec_vms,
            public_addresses: &[],
            security_lists: &[],
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

/// Runs `change` on a builder. If it fails, records the reason; `item` is the subject of the call.
///
/// # Safety
/// As for [`Builder::of`].
unsafe fn change(
    builder: *mut slb_builder,
    item: &str,
    change: impl FnOnce(&mut Parts) -> Result<usize, Fault>,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let parts = &mut unsafe { Builder::of(builder) }?.parts;
        parts.name = "";
        change(parts).map_err(|fault| {
            parts.message.set(item, parts.name, &fault);
            fault.into()
        })
    })
}

/// Describes the last failed call on the builder: the item and field, the expected values and the one given, such as
/// `backend "vm1": port: expected 0 to 65535, got 70000`. The text is empty if no call failed, never NULL, and valid
/// until the next call on the builder.
///
/// # Safety
/// `builder` is a builder, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_error(builder: *mut slb_builder) -> *const c_char {
    // SAFETY: guaranteed by the caller.
    match unsafe { Builder::of(builder) } {
        Ok(builder) => builder.parts.message.as_ptr(),
        Err(error) => message(error as c_int).as_ptr(),
    }
}

/// Returns the bytes of memory that a builder needs, or 0 if the argument is bad.
///
/// # Safety
/// `capacity` points to a capacity.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_size(capacity: *const slb_capacity) -> usize {
    let mut bytes = 0;
    guard(|| {
        // SAFETY: guaranteed by the caller.
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
    // SAFETY: guaranteed by the caller.
    let memory = unsafe { lines(memory, length) }?;
    let (place, rest) = memory
        .split_at_mut_checked(Builder::LINES)
        .ok_or(SLB_ERROR_SHORT)?;
    let parts = Parts::take(capacity, &mut Arena::new(rest)).ok_or(SLB_ERROR_SHORT)?;
    let place: *mut MaybeUninit<Builder> = place.as_mut_ptr().cast();
    // SAFETY: `place` is aligned, has room for a builder, and is not used elsewhere.
    let builder = unsafe { &mut *place }.write(Builder {
        kind: Kind::BUILDER,
        allocated,
        parts,
    });
    // SAFETY: guaranteed by the caller.
    unsafe { put(out, core::ptr::from_mut(builder).cast()) }?;
    Ok(0)
}

/// Makes a builder in `memory`, which is aligned to 64 bytes and has `length` bytes;
/// `slb_builder_size` returns the number needed. The builder owns the memory until
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
        // SAFETY: guaranteed by the caller.
        unsafe {
            put(out, core::ptr::null_mut())?;
            init(memory, (length, 0), shared(capacity)?, out)
        }
    })
}

/// Makes a builder in memory that the library allocates. Otherwise like `slb_builder_init`.
///
/// # Safety
/// The pointers are valid for their types.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_new(
    capacity: *const slb_capacity,
    out: *mut *mut slb_builder,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
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

/// Frees a builder. The caller owns its own memory again; memory of the library is released.
/// Snapshots made with the builder stay valid. NULL is no error.
///
/// # Safety
/// `builder` is a builder, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_free(builder: *mut slb_builder) -> c_int {
    guard(|| {
        if builder.is_null() {
            return Ok(0);
        }
        // SAFETY: guaranteed by the caller.
        let handle = unsafe { Builder::of(builder) }?;
        let allocated = handle.allocated;
        handle.kind = Kind::FREED;
        // SAFETY: the builder is not used any more, and owns nothing that needs dropping.
        unsafe { deallocate(builder.cast(), allocation(allocated)) };
        Ok(0)
    })
}

/// Writes all faults of the configuration to `text`, one per line with the names of its items, cut to `length` bytes
/// with the terminating zero; `text` may be NULL. Returns the number of faults, 0 if a snapshot can be made.
///
/// # Safety
/// `builder` is a builder, and `text` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_faults(
    builder: *mut slb_builder,
    text: *mut c_char,
    length: usize,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let builder = unsafe { Builder::of(builder) }?;
        let room = if text.is_null() {
            &mut []
        } else {
            // SAFETY: guaranteed by the caller.
            unsafe { array::<u8>(text.cast(), length) }?
        };
        let mut cut = Cut::new(room);
        let count = builder.with_spec(|spec| {
            let told = spec.faults().map(|fault| {
                let _ = writeln!(cut, "{}", fault.named(spec));
            });
            told.count()
        })?;
        cut.end();
        Ok(count)
    })
}
